"""Assemble: the outcomes of a bundle become Kafka records.

    PCollection[Outcome] ──► Assemble ──► PCollection[OutputRecord]
       scored groups      ──► trajectories   whole groups in Arrow records below max_record_bytes
       groups to be rated ──► pending        the same, apart
       dead letters       ──► dead-letters   one record each

Nothing is emitted before the bundle ends.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import apache_beam as beam
import structlog
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from schemas import traces, trajectories
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.limits import MAX_TRAJECTORY_BYTES
from schemas.prompts import FEEDBACK_REWARD
from schemas.trajectories import Group
from transforms import metrics
from transforms.generation.outcome import Outcome, OutputRecord, group_of

_LOG = structlog.get_logger(__name__)
_ROW_BYTES: Final = 256
"""About what a row takes beside its tokens and text."""
_TOKEN_BYTES: Final = 9
"""Of a response token: id, logprob and mask."""


def assemble(config: RunConfig, outcomes: Sequence[Outcome]) -> list[OutputRecord]:
    """The records of a bundle. All of a record's groups belong to one share and one topic."""
    topics = config.topics
    batches: dict[tuple[str, int], list[Group]] = {}
    letters: list[DeadLetter] = []
    for outcome in outcomes:
        if isinstance(outcome, DeadLetter):
            letters.append(outcome)
            continue
        topic = topics.pending if outcome.prompt.reward.name == FEEDBACK_REWARD else topics.trajectories
        batches.setdefault((topic, outcome.id.partition % config.rollout.shares), []).append(outcome)
    records: list[OutputRecord] = []
    for (topic, _), groups in batches.items():
        for chunk in split_by_size(groups, config.rollout.max_record_bytes):
            for made in encode_groups(topic, chunk, config.rollout.max_record_bytes):
                if isinstance(made, OutputRecord):
                    records.append(made)
                else:
                    letters.append(_too_large(config, *made))
    return records + [encode_letter(topics.dead_letters, letter) for letter in letters]


def split_by_size(groups: Iterable[Group], max_bytes: int) -> Iterator[list[Group]]:
    """Cuts a sequence of groups so that each piece is estimated below ``max_bytes``."""
    chunk: list[Group] = []
    size_bytes = 0
    for group in groups:
        estimate = estimate_bytes(group)
        if chunk and size_bytes + estimate > max_bytes:
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(group)
        size_bytes += estimate
    if chunk:
        yield chunk


def estimate_bytes(group: Group) -> int:
    """About what a group takes in a record."""
    return sum(
        _ROW_BYTES
        + _TOKEN_BYTES * len(sample.response_token_ids)
        + 4 * len(sample.prompt_token_ids)
        + len(sample.response_text)
        for sample in group.samples
    )


def encode_groups(topic: str, groups: Sequence[Group], max_bytes: int) -> Iterator[OutputRecord | tuple[Group, int]]:
    """Records of ``groups`` below ``max_bytes`` each, unless one group alone exceeds that.

    A group that exceeds even what a reader accepts is given back with its size in bytes.
    """
    contexts = {group.id: group.trace for group in groups if group.trace}
    value, headers = trajectories.encode([sample for group in groups for sample in group.samples], traces=contexts)
    if len(value) > max_bytes and len(groups) > 1:
        half = len(groups) // 2
        yield from encode_groups(topic, groups[:half], max_bytes)
        yield from encode_groups(topic, groups[half:], max_bytes)
    elif len(value) > MAX_TRAJECTORY_BYTES:
        yield groups[0], len(value)
    else:
        ids = tuple(group.id for group in groups)
        yield OutputRecord(topic, ids[0].key(), value, tuple(headers.items()), ids)


def _too_large(config: RunConfig, group: Group, size_bytes: int) -> DeadLetter:
    detail = f"its {len(group.samples)} samples take {size_bytes} bytes, expected at most {MAX_TRAJECTORY_BYTES}"
    _LOG.warning("group_too_large", group=str(group.id), size_bytes=size_bytes)
    return DeadLetter.of("assemble", "too_large", detail, (config.topics.prompts, *group.id), group.value)


def encode_letter(topic: str, letter: DeadLetter) -> OutputRecord:
    """The record of a dead letter."""
    return OutputRecord(topic, letter.key(), letter.encode(), (), (group_of(letter),))


class AssembleFn(beam.DoFn):  # type: ignore[misc]
    """Collects a bundle and emits its records when it ends."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._outcomes: list[Outcome] = []
        self._timestamp = beam.utils.timestamp.MIN_TIMESTAMP

    def process(self, outcome: Outcome, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        """Keeps the outcome."""
        self._outcomes.append(outcome)
        self._timestamp = max(self._timestamp, timestamp)

    def finish_bundle(self) -> Any:
        """Emits the records, at the time of the bundle's newest prompt."""
        began_s, started = time.time(), time.monotonic()
        records = assemble(self._config, self._outcomes)
        metrics.ASSEMBLE_SECONDS.observe(time.monotonic() - started)
        _record(self._outcomes, began_s)
        for record in records:
            yield WindowedValue(record, self._timestamp, (GlobalWindow(),))


def _record(outcomes: Sequence[Outcome], began_s: float) -> None:
    """The same time in each group's trace: a bundle's records are made together."""
    ended_s = time.time()
    for outcome in outcomes:
        if isinstance(outcome, Group) and outcome.trace:
            facts = {"groups": len(outcomes)}
            traces.record(traces.Span(traces.below(outcome.trace), "assemble", began_s, ended_s, facts))


class Assemble(beam.PTransform):  # type: ignore[misc]
    """Makes records of outcomes."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, outcomes: PCollection[Outcome]) -> PCollection[OutputRecord]:
        """Wires."""
        return outcomes | beam.ParDo(AssembleFn(self._config)).with_output_types(OutputRecord)
