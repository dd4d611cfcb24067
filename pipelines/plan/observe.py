"""What the log of a run says of its speeds: which groups came when, and what each step took.

trajectories ──► Answered      admission ──► when a prompt could begin      ledger ──► Step
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.log import RunLog, RunReader
from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.errors import RecordError, RunError
from schemas.identity import GroupId
from schemas.ledger import StartEntry, StepEntry, surviving_steps
from schemas.trajectories import Sample

_WARM_STEPS = 3
"""Steps before a run is steady: engines warm up, the first gradient sets up its kernels."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One group. Instants are seconds since 1970."""

    group: GroupId
    worker: str
    lengths: tuple[int, ...]
    """Of its answers, in tokens."""
    prompt_tokens: int
    prompt_s: float
    """When the prompt was written."""
    end_s: float
    """When its last token was received."""
    read_s: float
    """When its record was written."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a run did once it was steady, a second of the clock."""

    steps: int
    """That were counted."""
    step_s: float
    samples_per_s: float
    """Trained."""
    tokens_per_s: float
    """Of the answers that were trained."""
    staleness_mean: float
    """Of the groups that were trained, in versions."""


@dataclass
class Observed:
    """Everything that a calibration is made of."""

    answered: list[Answered] = field(default_factory=list)
    """In the order of the log."""
    frontiers: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Of each prompts partition the ends of admission, ascending, and when each was announced."""
    steps: list[StepEntry] = field(default_factory=list)
    """Of the surviving line since the newest start, oldest first."""
    start: StartEntry | None = None
    """The newest; null where nobody trained."""
    resumed_s: float | None = None
    """When a run that had been stopped went on, in seconds since 1970: only what is newer says how fast it is. Null of
    a run with one start."""
    earlier: list[Answered] = field(default_factory=list)
    """Answered before that, of which the first steps after it may have trained some."""

    def admitted_s(self, answered: Answered) -> float:
        """When the prompt was admitted, or, while that is not known, written; not before the newest start."""
        ends, times = self.frontiers.get(answered.group.partition, ([], []))
        place = bisect_right(ends, answered.group.offset)
        found_s = times[place] if place < len(times) else answered.prompt_s
        return max(found_s, self.resumed_s or found_s)

    def newest(self, source: str) -> str:
        """How a source is named of which only the newest part counts."""
        return source if self.resumed_s is None else f"{source} since the newest start"

    @property
    def workers(self) -> list[str]:
        """Who answered."""
        return sorted({each.worker for each in self.answered})

    def steady_steps(self) -> list[StepEntry]:
        """Steps without the first three of a run, as long as others are left."""
        return self.steps[_WARM_STEPS:] if len(self.steps) > _WARM_STEPS + 1 else self.steps[1:]

    def rates(self) -> Rates | None:
        """What was trained from the third step on to the last; null of a run that is too short to say."""
        steps = self.steady_steps()
        if not steps:
            return None
        before = self.steps[len(self.steps) - len(steps) - 1]
        passed_s = steps[-1].at.timestamp() - before.at.timestamp()
        lengths = {each.group: sum(each.lengths) for each in (*self.earlier, *self.answered)}
        trained = [(step, group) for step in steps for group in step.trained]
        if passed_s <= 0 or not trained:
            return None
        return Rates(
            steps=len(steps),
            step_s=passed_s / len(steps),
            samples_per_s=sum(group.samples for _, group in trained) / passed_s,
            tokens_per_s=sum(lengths.get(group.group, 0) for _, group in trained) / passed_s,
            staleness_mean=sum(step.version - 1 - group.versions[0] for step, group in trained) / len(trained),
        )


def observe(config: RunConfig) -> Observed:
    """Reads the log of a run.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the run.
        RunError: the run has not answered anything.
    """
    collector = _Collector(config.topics.trajectories, config.topics.admission)
    with RunReader(config.kafka, config.name, collector.on_group, collector.on_record) as reader:
        log = reader.advance()
    return complete(collector.observed, log, config.name)


def complete(observed: Observed, log: RunLog, run: str) -> Observed:
    """Adds what the ledger says; of a run that was resumed only what came after that counts.

    Raises:
        RunError: there is nothing to calibrate with.
    """
    starts = [entry for entry in log.ledger if isinstance(entry, StartEntry)]
    observed.start = starts[-1] if starts else None
    if len(starts) > 1:
        _forget_before(observed, starts[-1].at.timestamp())
    if not observed.answered:
        raise RunError(
            f"{observed.newest(f'run {run!r}')} has no answers yet: a plan needs the log of a run that has trained for "
            "some steps; or give --calibration FILE"
        )
    newest = observed.start.generation if observed.start else 0
    observed.steps = [step for step in surviving_steps(log.ledger) if step.generation >= newest]
    return observed


def _forget_before(observed: Observed, resumed_s: float) -> None:
    """The pause is no time that engines or learner took, and what was before it may have been other machines."""
    observed.resumed_s = resumed_s
    observed.earlier = [each for each in observed.answered if each.end_s < resumed_s]
    observed.answered = [each for each in observed.answered if each.end_s >= resumed_s]


def answered(samples: Sequence[Sample], read_s: float) -> Answered:
    """The facts of one decoded group.

    Args:
        samples: of the group.
        read_s: when its record was written.
    """
    first = samples[0]
    return Answered(
        group=first.group,
        worker=first.worker,
        lengths=tuple(len(sample.response_token_ids) for sample in samples),
        prompt_tokens=len(first.prompt_token_ids),
        prompt_s=first.prompt_at.timestamp(),
        end_s=first.generated_at.timestamp(),
        read_s=read_s,
    )


class _Collector:
    """Takes in what a :class:`RunReader` reads."""

    def __init__(self, trajectories: str, admission: str) -> None:
        self.observed = Observed()
        self._trajectories, self._admission, self._read_s = trajectories, admission, 0.0

    def on_record(self, record: Any) -> None:
        if record.topic == self._trajectories:
            self._read_s = record.timestamp / 1000
        elif record.topic == self._admission:
            self._admit(record)

    def _admit(self, record: Any) -> None:
        try:
            frontier = AdmissionFrontier.decode(record.value or b"").frontier
        except RecordError:
            return  # the audit's business
        for partition, end in frontier.items():
            ends, times = self.observed.frontiers.setdefault(partition, ([], []))
            if not ends or end > ends[-1]:
                ends.append(end)
                times.append(record.timestamp / 1000)

    def on_group(self, samples: list[Sample]) -> None:
        if samples[0].group.is_prompt:
            self.observed.answered.append(answered(samples, self._read_s))
