"""Reads everything that a report says from the topics of a run, in one pass and bounded memory.

RunReader ──► RunLog (what accounting needs)
    ├─ on_group  ──► SampleBook (answers to show), Flow (what passed when)
    └─ on_record ──► where a group lies, when prompts were admitted, what the kept prompts say
outcomes, exchanges ──► what became of feedback, what people asked
run directory ──► configuration, tokenizer, last words in logs
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.log import RunLog, RunReader, TopicReader
from pipelines.report.flow import Flow
from pipelines.report.logs import Said, read_logs
from pipelines.report.samples import MAX_PROMPT_CHARACTERS, KeptGroup, KeptSample, SampleBook
from pipelines.runs import CONFIG_NAME
from pipelines.tokenizer import Decoder, load_decoder
from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.errors import BrokerError, RecordError
from schemas.exchanges import Exchange
from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from schemas.ledger import surviving_steps
from schemas.outcomes import Outcome
from schemas.prompts import Message, Prompt
from schemas.records import now
from schemas.trajectories import Sample


@dataclass
class Gathered:
    """Everything that is known of a run."""

    run: str
    log: RunLog
    book: SampleBook
    flow: Flow
    fates: Counter[str] = field(default_factory=Counter)
    """Feedback records by what became of them."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Decisions of the feedback pipeline by kind."""
    config: RunConfig | None = None
    """Null for a run without a directory here: no topic holds it."""
    config_text: str = ""
    """The same as TOML."""
    said: list[Said] = field(default_factory=list)
    """Warnings, errors and last words of the processes, from their logs."""
    by_token: bool = False
    """Whether the model's tokenizer was at hand."""
    made_at: datetime = field(default_factory=now)


def gather(config: RunConfig, directory: Path | None = None, book: SampleBook | None = None) -> Gathered:
    """Reads a run.

    Args:
        config: of the run; only where its log is counts where there is no directory.
        directory: of the run, if it has one on this machine.
        book: for the answers; by default one of the usual size.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the run.
    """
    decoder = load_decoder(config) if directory else None
    collector = Collector(config.name, book or SampleBook(), decoder)
    with RunReader(config.kafka, config.name, collector.on_group, collector.on_record) as reader:
        log = reader.advance()
    collector.count(log)
    gathered = Gathered(config.name, log, collector.book, collector.flow, by_token=decoder is not None)
    _add_exchanges(config, collector.book)
    _add_outcomes(config, gathered)
    if directory:
        _add_files(config, directory, gathered)
    return gathered


class Collector:
    """Takes in what a :class:`RunReader` reads."""

    def __init__(self, run: str, book: SampleBook, decoder: Decoder | None) -> None:
        self.book, self.flow, self._decoder = book, Flow(), decoder
        self._topics = {f"{run}.trajectories": self._on_trajectories, f"{run}.prompts": self._on_prompt}
        self._topics[f"{run}.admission"] = self._on_admission
        self._at = (0, 0)
        self._frontiers: list[tuple[datetime, dict[int, int]]] = []
        self._unread: dict[GroupId, list[KeptGroup]] | None = None

    def on_record(self, record: Any) -> None:
        """A record that is about to be decoded."""
        if handle := self._topics.get(record.topic):
            handle(record)

    def on_group(self, samples: list[Sample]) -> None:
        """A group of the trajectories record before."""
        self.flow.add(samples)
        self.book.add(keep(samples, self._at, self._decoder))

    def count(self, log: RunLog) -> None:
        """What is known only when all topics are read: what was admitted, trained, dropped and refused when."""
        for at, frontier in self._frontiers:
            admitted = sum(bisect_left(log.prompts.get(partition, []), end) for partition, end in frontier.items())
            self.flow.admitted.append((at, admitted))
        for step in surviving_steps(log.ledger):
            for series, groups in (("trained", step.trained), ("dropped", step.dropped)):
                if groups:
                    self.flow.timeline.add(series, step.at, len(groups))
        for letter in log.dead_letters:
            if letter.topic.endswith(".prompts"):
                self.flow.timeline.add("dead letters", letter.at)

    def _on_trajectories(self, record: Any) -> None:
        self._at = (record.partition, record.offset)

    def _on_admission(self, record: Any) -> None:
        with suppress(RecordError, ValueError, OverflowError):  # the latter two: no time that a calendar knows
            frontier = AdmissionFrontier.decode(record.value).frontier
            self._frontiers.append((datetime.fromtimestamp(record.timestamp / 1000, UTC), frontier))

    def _on_prompt(self, record: Any) -> None:
        """Prompts are read last, when it is known which are shown."""
        if self._unread is None:
            self._unread = {}
            for group in self.book:
                self._unread.setdefault(group.group, []).append(group)
        wanted = self._unread.pop(GroupId(record.partition, record.offset), ())
        with suppress(RecordError):
            text = prompt_text(Prompt.decode(record.value)) if wanted else ""
            for group in wanted:
                group.prompt = text or group.prompt


def keep(samples: Sequence[Sample], at: tuple[int, int], decoder: Decoder | None) -> KeptGroup:
    """What a report shows of one decoded group.

    Args:
        samples: of the group.
        at: partition and offset of its record in the trajectories topic.
        decoder: of the model; without one spans of versions are placed by their share of the tokens.
    """
    first = samples[0]
    prompt = decoder.decode(list(first.prompt_token_ids)) if decoder else ""
    return KeptGroup(
        group=first.group,
        at=at,
        attempt=first.attempt_id,
        prompt_id=first.prompt_id,
        task=first.task,
        purpose=first.purpose,
        worker=first.worker,
        prompt_at=first.prompt_at,
        generated_at=first.generated_at,
        versions=(
            min(sample.weight_version_min for sample in samples),
            max(sample.weight_version_max for sample in samples),
        ),
        samples=tuple(_keep_sample(sample, decoder) for sample in samples),
        prompt=prompt.strip()[:MAX_PROMPT_CHARACTERS],
    )


def _keep_sample(sample: Sample, decoder: Decoder | None) -> KeptSample:
    return KeptSample(
        answer=sample.response_text,
        characters=len(sample.response_text),
        tokens=len(sample.response_token_ids),
        reward=sample.reward,
        error=sample.reward_error,
        finish=sample.finish_reason,
        spans=place_spans(sample, decoder),
    )


def place_spans(sample: Sample, decoder: Decoder | None) -> tuple[tuple[int, int], ...]:
    """Weight versions of a sample, each with the character of its text that its first token begins at.

    By token where there is a tokenizer and the text is what it makes of the tokens, or their end as in conversations;
    else by the share of the tokens that come before.
    """
    spans, text = sample.weight_version_spans, sample.response_text
    if len(spans) == 1:
        return ((spans[0].version, 0),)
    ids = list(sample.response_token_ids)
    begin = decoder.decode(ids).rfind(text) if decoder and text else -1
    if decoder and begin >= 0:
        places = [len(decoder.decode(ids[: span.start])) - begin for span in spans]
    else:
        places = [round(len(text) * span.start / len(ids)) for span in spans]
    return tuple((span.version, max(0, place)) for span, place in zip(spans, places, strict=True))


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a person reads it, cut."""
    if prompt.messages is not None:
        return messages_text(prompt.messages)
    text = prompt.text if prompt.text is not None else f"token ids {list(prompt.token_ids or ())}"
    return text[:MAX_PROMPT_CHARACTERS]


def messages_text(messages: Iterable[Message]) -> str:
    """A conversation as a person reads it, cut; of a single question just the question."""
    told = list(messages)
    alone = len(told) == 1 and told[0].role == "user"
    text = told[0].content if alone else "\n".join(f"{each.role}: {each.content}" for each in told)
    return text[:MAX_PROMPT_CHARACTERS]


def _add_exchanges(config: RunConfig, book: SampleBook) -> None:
    wanted: dict[GroupId, list[KeptGroup]] = {}
    for group in book:
        if EXCHANGES <= group.group.partition < FEEDBACK:
            wanted.setdefault(group.group, []).append(group)
    for record in _records(config, config.topics.exchanges) if wanted else ():
        for group in wanted.get(GroupId(EXCHANGES + record.partition, record.offset), ()):
            with suppress(RecordError):
                group.prompt = messages_text(Exchange.decode(record.value).messages)


def _add_outcomes(config: RunConfig, gathered: Gathered) -> None:
    for record in _records(config, config.topics.outcomes):
        with suppress(RecordError):
            outcome = Outcome.decode(record.value)
            gathered.outcomes[outcome.kind] += outcome.kind != "refused"  # that decides nothing about a group
            gathered.fates.update(fate.fate for fate in outcome.feedback)


def _records(config: RunConfig, topic: str) -> Iterator[Any]:
    """The records of a topic; none where a run of a program that knew no feedback has no such topic."""
    try:
        reader = TopicReader(config.kafka, topic)
    except BrokerError:
        return
    with closing(reader):
        yield from reader.read_on()


def _add_files(config: RunConfig, directory: Path, gathered: Gathered) -> None:
    gathered.config = config
    gathered.config_text = (directory / CONFIG_NAME).read_text()
    gathered.said = read_logs(directory / "logs")
