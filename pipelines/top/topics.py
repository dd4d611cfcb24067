"""What the topics of a run say, without reading all of it: a look costs the same after a million prompts.

    ledger, admission, weights, dead letters   whole
    trajectories                               from what the learner consumed last, less some records
    prompts                                    where they begin and end
    workers                                    the newest announcement of each

Prompts are counted by their offsets, so the markers of a transactional producer count as prompts.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pipelines.log import TopicReader, finished_prompts
from pipelines.top.line import Line, endings
from pipelines.top.state import Learner, ShownSample, Stage, Worker, WorkerState
from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, RecordError
from schemas.identity import GroupId
from schemas.ledger import LedgerEntry, StepEntry, decode_entry
from schemas.offsets import OffsetSet
from schemas.trajectories import Sample, decode
from schemas.weights import WeightVersion
from schemas.workers import WorkerEntry

_REREAD_RECORDS: Final = 64
"""Trajectories records before the newest consumed one that are read too: the learner holds groups back."""
_SAMPLES: Final = 6
_REQUEST_TIMEOUT_S: Final = 5.0
"""A person who watches wants to know soon that the broker is away."""
_SILENT_S: Final = 8.0
"""A worker announces itself every 2 s."""
_FORGOTTEN_S: Final = {"up": 600.0, "leaving": 60.0}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LogView:
    """The topics at one moment."""

    at: float
    """Seconds since 1970."""
    stages: tuple[Stage, ...]
    """Without rates."""
    learner: Learner
    workers: tuple[Worker, ...]
    dead_letters: dict[str, int]
    samples: tuple[ShownSample, ...]


@dataclass
class _Waiting:
    """A group of the trajectories topic that no step has consumed."""

    at: tuple[int, int]
    since: float


@dataclass
class _Facts:
    """What was read so far."""

    line: Line = field(default_factory=Line)
    admissions: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """By prompts partition the frontiers and when each was moved there, those that are of use still."""
    waiting: dict[GroupId, _Waiting] = field(default_factory=dict)
    dead_letters: Counter[str] = field(default_factory=Counter)
    workers: dict[str, tuple[WorkerEntry, float]] = field(default_factory=dict)
    """By URL the newest announcement and when it was heard."""
    samples: deque[ShownSample] = field(default_factory=lambda: deque(maxlen=_SAMPLES))


class TopicsWatcher:
    """Follows the topics of one run; used by one thread.

    Args:
        config: of the run; only name and Kafka are needed.
        show: token ids of a prompt as text.
        steps: how many the learner will make; null if nobody knows.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the run's topics.
    """

    def __init__(self, config: RunConfig, show: Callable[[list[int]], str], steps: int | None = None) -> None:
        kafka = config.kafka.model_copy(update={"request_timeout_s": _REQUEST_TIMEOUT_S})
        self._topics, self._show, self._steps = config.topics, show, steps
        topics = config.topics
        names = (topics.ledger, topics.admission, topics.weights, topics.dead_letters, topics.trajectories,
                 topics.prompts, topics.workers)  # fmt: skip
        with ExitStack() as opened:
            self._readers = {name: _open(opened, lambda name=name: TopicReader(kafka, name)) for name in names}  # type: ignore[misc]
            self._commits = _open(opened, lambda: _group_reader(kafka.consumer_options(), topics.rollout_group))
            self._closing = opened.pop_all()
        self._begins = self._readers[topics.prompts].begins
        self._facts, self._is_first = _Facts(), True
        self.heard_at = time.time()
        """When the broker answered last."""

    def close(self) -> None:
        """Closes the connections."""
        self._closing.close()

    def look(self) -> LogView:
        """Reads on, in an order in which nothing refers to what is not read yet.

        Raises:
            KafkaError: the broker is away, or gives an error.
        """
        topics, line = self._topics, self._facts.line
        finished = finished_prompts(self._commits, self._readers[topics.prompts].partitions)
        for record, frontier in self._read(topics.admission, AdmissionFrontier.decode):
            self._admit(frontier, record.timestamp / 1000)
        for _, entry in self._read(topics.ledger, decode_entry):
            self._take(entry)
        for _, version in self._read(topics.weights, WeightVersion.decode):
            line.announce(version)
        self._follow_trajectories()
        for _, letter in self._read(topics.dead_letters, DeadLetter.decode):
            self._bury(letter)
        for _, worker in self._read(topics.workers, WorkerEntry.decode):
            self._hear(worker)
        ends = self._readers[topics.prompts].ends()
        self._is_first, self.heard_at = False, time.time()
        return self._view(ends, finished)

    # ------------------------------------------------------------------ reading

    def _read(self, topic: str, decoder: Callable[[bytes], _T]) -> Iterable[tuple[Any, _T]]:
        for record in self._readers[topic].read_on():
            self.heard_at = time.time()
            with suppress(RecordError):  # the audit's business
                yield record, decoder(record.value or b"")
        self.heard_at = time.time()  # it has said that there is no more

    def _take(self, entry: LedgerEntry) -> None:
        for lost in self._facts.line.add(entry):  # their groups wait once more
            self._facts.waiting.update({group: _Waiting(at, lost.at.timestamp()) for group, at in endings(lost)})
        if isinstance(entry, StepEntry):
            for group, _ in endings(entry):
                self._facts.waiting.pop(group, None)

    def _admit(self, frontier: AdmissionFrontier, at: float) -> None:
        for partition, offset in frontier.frontier.items():
            known = self._facts.admissions.setdefault(partition, [])
            if not known or offset > known[-1][0]:
                known.append((offset, at))

    def _follow_trajectories(self) -> None:
        reader = self._readers[self._topics.trajectories]
        if self._is_first:
            consumed = self._facts.line.consumed
            begins = reader.begins
            reader.seek({partition: max(begins[partition], offset - _REREAD_RECORDS)
                         for partition, offset in consumed.items() if partition in begins})  # fmt: skip
        for record in reader.read_on():
            self.heard_at = time.time()
            with suppress(RecordError):
                for samples in decode(record.value, dict(record.headers)):
                    self._arrive(samples, record)

    def _arrive(self, samples: list[Sample], record: Any) -> None:
        first, at = samples[0], (record.partition, record.offset)
        if not self._facts.line.has_consumed(first.group, at):
            self._facts.waiting[first.group] = _Waiting(at, record.timestamp / 1000)
        self._facts.samples.append(
            ShownSample(
                group=str(first.group),
                prompt=self._show(list(first.prompt_token_ids)) or first.prompt_id or first.task,
                answer=first.response_text,
                reward=first.reward,
                versions=(first.weight_version_min, first.weight_version_max),
                step=len(self._facts.line.steps),
            )
        )

    def _bury(self, letter: DeadLetter) -> None:
        facts = self._facts
        facts.dead_letters[letter.reason] += 1
        if letter.topic == self._topics.trajectories:
            refused = [group for group, each in facts.waiting.items() if each.at == (letter.partition, letter.offset)]
            for group in refused:
                del facts.waiting[group]

    def _hear(self, entry: WorkerEntry) -> None:
        """Announcements that came before we listened are as old as they say; clocks may differ."""
        now = time.time()
        self._facts.workers[entry.url] = entry, min(now, entry.at.timestamp()) if self._is_first else now

    # ------------------------------------------------------------------ telling

    def _view(self, ends: dict[int, int], finished: dict[int, OffsetSet]) -> LogView:
        facts, now = self._facts, time.time()
        return LogView(
            at=now,
            stages=self._stages(ends, finished, now),
            learner=facts.line.learner(len(facts.waiting), self._steps),
            workers=tuple(self._workers(now)),
            dead_letters=dict(facts.dead_letters),
            samples=tuple(facts.samples),
        )

    def _stages(self, ends: dict[int, int], finished: dict[int, OffsetSet], now: float) -> tuple[Stage, ...]:
        facts, line = self._facts, self._facts.line
        prompts = sum(end - self._begins[partition] for partition, end in ends.items())
        frontier = {partition: known[-1][0] for partition, known in facts.admissions.items()}
        admitted = sum(
            _between(self._begins[partition], frontier.get(partition, 0), end) for partition, end in ends.items()
        )
        answered = sum(_count(self._begins.get(partition, 0), each) for partition, each in finished.items())
        oldest = min((each.since for each in facts.waiting.values()), default=None)
        dropped = sum(line.dropped.values())
        written = line.trained + dropped + len(facts.waiting)
        lag = sum(end - line.consumed.get(partition, self._first(partition))
                  for partition, end in self._readers[self._topics.trajectories].ends().items())  # fmt: skip
        return (
            Stage("prompts", prompts, waiting=max(0, prompts - admitted)),
            Stage(
                "in flight",
                admitted,
                waiting=max(0, admitted - answered),
                oldest_s=self._oldest_in_flight(finished, now),
            ),
            Stage(
                "trajectories", written, waiting=len(facts.waiting), oldest_s=_age(oldest, now), lag_records=max(0, lag)
            ),
            Stage("trained", line.trained),
            Stage("dropped", dropped),
            Stage("dead letters", sum(facts.dead_letters.values())),
        )

    def _first(self, partition: int) -> int:
        begins: dict[int, int] = self._readers[self._topics.trajectories].begins
        return begins[partition]

    def _oldest_in_flight(self, finished: dict[int, OffsetSet], now: float) -> float | None:
        """Since the frontier passed the first prompt that is not finished."""
        found: list[float] = []
        for partition, known in self._facts.admissions.items():
            low = finished[partition].low if partition in finished else self._begins.get(partition, 0)
            known[:-1] = [each for each in known[:-1] if each[0] > low]
            found += [at for offset, at in known if offset > low][:1]
        return _age(min(found, default=None), now)

    def _workers(self, now: float) -> Iterable[Worker]:
        for url, (entry, heard) in sorted(self._facts.workers.items()):
            silent_s = max(0.0, now - heard)
            if silent_s < _FORGOTTEN_S[entry.state]:
                gone = entry.state == "up" and silent_s > _SILENT_S
                state: WorkerState = "silent" if gone else entry.state
                yield Worker(url, state, entry.version, silent_s, entry.max_num_seqs)


def _open(opened: ExitStack, make: Callable[[], Any]) -> Any:
    made = make()
    opened.callback(made.close)
    return made


def _group_reader(options: dict[str, Any], group: str) -> Any:
    from kafka import KafkaConsumer
    from kafka.errors import KafkaError

    try:
        return KafkaConsumer(group_id=group, **options)
    except KafkaError as error:
        raise BrokerError(f"Kafka cannot be reached ({error}); start it, or give its address") from error


def _between(begin: int, offset: int, end: int) -> int:
    return max(0, min(offset, end) - begin)


def _count(begin: int, finished: OffsetSet) -> int:
    return max(0, finished.low - begin) + len(finished.beyond)


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)
