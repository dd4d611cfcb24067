"""Reading the log of a run as any reader can: from the first record, committed records only.

TopicReader    one topic, from its beginning, without a consumer group
RunLog         all that was read of a run so far; ``advance`` reads on
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from schemas.admission import AdmissionFrontier
from schemas.config import KafkaConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, RecordError
from schemas.evals import EvalResult
from schemas.identity import GroupId
from schemas.ledger import LedgerEntry, decode_entry
from schemas.offsets import OffsetSet
from schemas.reach import unreachable
from schemas.topics import Topics
from schemas.trajectories import Sample, decode
from schemas.weights import WeightVersion

_POLL_MS = 200
_SILENT_S = 60.0
"""Without a record for so long, and with more to come, a reader gives up: kafka-python would try for ever."""
_T = TypeVar("_T")


class TopicReader:
    """One topic from its beginning; remembers how far it has read.

    Attributes:
        partitions: of the topic, kafka-python's.
        begins: the offset of the first record of each when it was opened.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the topic.
    """

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        from kafka import KafkaConsumer
        from kafka.errors import KafkaError

        with ExitStack() as opened:
            try:
                self._consumer = KafkaConsumer(**kafka.consumer_options())
                opened.callback(self._consumer.close)
                self.partitions = self._assign(topic, kafka.bootstrap)
            except KafkaError as error:
                raise unreachable(kafka, error) from error
            opened.pop_all()

    def _assign(self, topic: str, bootstrap: str) -> list[Any]:
        """All partitions of the topic, from their first records on."""
        from kafka import TopicPartition

        numbers = self._consumer.partitions_for_topic(topic)
        if not numbers:
            raise BrokerError(f"topic {topic} does not exist at {bootstrap}; give the name of a run that was started")
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        self._consumer.assign(partitions)
        begins = self._consumer.beginning_offsets(partitions)
        self.begins = {partition.partition: offset for partition, offset in begins.items()}
        for partition, offset in begins.items():
            self._consumer.seek(partition, offset)
        return partitions

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Goes on from these offsets, by partition, instead of where it stands."""
        for partition in self.partitions:
            if partition.partition in offsets:
                self._consumer.seek(partition, offsets[partition.partition])

    def read_on(self) -> Iterator[Any]:
        """The records from where it stands to the present end of the topic, as kafka-python's ``ConsumerRecord``.

        Raises:
            BrokerError: nothing has come for a minute though there is more: the broker died meanwhile.
        """
        ends = self._consumer.end_offsets(self.partitions)
        stands, since = self._stands(), time.monotonic()
        while any(stands[partition] < end for partition, end in ends.items()):
            for records in self._consumer.poll(timeout_ms=_POLL_MS).values():
                yield from records
            before, stands = stands, self._stands()
            if stands != before:
                since = time.monotonic()
            elif time.monotonic() - since > _SILENT_S:
                raise BrokerError(_silence(stands, ends))

    def _stands(self) -> dict[Any, int]:
        return {partition: self._consumer.position(partition) for partition in self.partitions}

    def ends(self) -> dict[int, int]:
        """The offset after the last record of each partition."""
        return {partition.partition: end for partition, end in self._consumer.end_offsets(self.partitions).items()}

    def close(self) -> None:
        """Closes the connection."""
        self._consumer.close()


def _silence(stands: Mapping[Any, int], ends: Mapping[Any, int]) -> str:
    partition, end = next((each, end) for each, end in ends.items() if stands[each] < end)
    return (
        f"Kafka has sent nothing for {_SILENT_S:.0f} s: {partition.topic}/{partition.partition} is read up to "
        f"{stands[partition]} of {end}; see whether the broker is up, and start this again"
    )


def read_topic(kafka: KafkaConfig, topic: str, decode: Callable[[bytes], _T]) -> list[_T]:
    """The records of a topic so far, in the order of the log; what cannot be decoded is the audit's business."""
    reader, found = TopicReader(kafka, topic), list[_T]()
    try:
        for record in reader.read_on():
            with suppress(RecordError):
                found.append(decode(record.value or b""))
    finally:
        reader.close()
    return found


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """What the log says of one group in one trajectories record."""

    group: GroupId
    at: tuple[int, int]
    """Partition and offset of the record."""
    attempt: str
    samples: int
    versions: tuple[int, int]
    """Oldest and newest weight version among its tokens."""
    spanned: frozenset[int]
    """All weight versions among its tokens."""
    purpose: str
    """Of its rows, see ``schemas.trajectories.PURPOSES``; several, which no group may have, with a ``+`` between."""


def summarise(samples: list[Sample], at: tuple[int, int]) -> GroupRecord:
    """The facts of one decoded group that accounting needs."""
    spanned = frozenset(span.version for sample in samples for span in sample.weight_version_spans)
    return GroupRecord(
        group=samples[0].group,
        at=at,
        attempt=samples[0].attempt_id,
        samples=len(samples),
        versions=(min(spanned), max(spanned)),
        spanned=spanned,
        purpose="+".join(sorted({sample.purpose for sample in samples})),
    )


@dataclass
class RunLog:
    """Everything that the topics of a run say, trajectories as summaries."""

    prompts: dict[int, list[int]] = field(default_factory=dict)
    """Offsets of the real records of each prompts partition, ascending."""
    groups: list[GroupRecord] = field(default_factory=list)
    """Of trajectories, in log order within a partition."""
    pending: list[GroupRecord] = field(default_factory=list)
    """Of groups that wait for feedback."""
    unreadable: list[str] = field(default_factory=list)
    """Records that could not be decoded: where and why."""
    weights: list[WeightVersion] = field(default_factory=list)
    admission: list[AdmissionFrontier] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    evals: list[EvalResult] = field(default_factory=list)
    finished: dict[int, OffsetSet] = field(default_factory=dict)
    """What the rollout pipeline committed as finished, by prompts partition."""


class RunReader:
    """Follows all topics of a run into a :class:`RunLog`.

    Args:
        kafka: how to reach the broker.
        run: name of the run.
        on_group: called with the samples of every group that is read from trajectories.
        on_record: called with every record before it is decoded, as kafka-python's ``ConsumerRecord``.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        run: str,
        on_group: Callable[[list[Sample]], None] | None = None,
        on_record: Callable[[Any], None] | None = None,
    ) -> None:
        self.log = RunLog()
        self._kafka, self._topics, self._on_group, self._on_record = kafka, Topics(run), on_group, on_record
        names = [spec.name for spec in self._topics.specs(1)]
        unread = (self._topics.feedback, self._topics.exchanges, self._topics.outcomes, self._topics.workers)
        self._readers = {name: TopicReader(kafka, name) for name in names if name not in unread}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        for reader in self._readers.values():
            reader.close()

    def advance(self) -> RunLog:
        """Reads every topic to its present end.

        The order makes a snapshot of a live run consistent: what one topic refers to is read after
        it (commits before outputs, admission before the steps that allow it, ledger before the
        trajectories that it names).
        """
        self.log.finished = self._read_finished()
        topics, log = self._topics, self.log
        log.admission += self._read_all(topics.admission, AdmissionFrontier)
        log.ledger += [entry for record in self._read(topics.ledger) if (entry := self._decode(decode_entry, record))]
        log.weights += self._read_all(topics.weights, WeightVersion)
        log.groups += self._read_groups(topics.trajectories, self._on_group)
        log.pending += self._read_groups(topics.pending, None)
        log.dead_letters += self._read_all(topics.dead_letters, DeadLetter)
        log.evals += self._read_all(topics.evals, EvalResult)
        for record in self._read(topics.prompts):
            log.prompts.setdefault(record.partition, []).append(record.offset)
        return log

    def _read(self, topic: str) -> Iterator[Any]:
        for record in self._readers[topic].read_on():
            if self._on_record:
                self._on_record(record)
            yield record

    def _read_all(self, topic: str, kind: Any) -> list[Any]:
        return [found for record in self._read(topic) if (found := self._decode(kind.decode, record))]

    def _decode(self, decoder: Callable[[bytes], Any], record: Any) -> Any | None:
        try:
            return decoder(record.value or b"")
        except RecordError as error:
            self.log.unreadable.append(f"{record.topic}/{record.partition}/{record.offset}: {error}")
            return None

    def _read_groups(self, topic: str, on_group: Callable[[list[Sample]], None] | None) -> Iterator[GroupRecord]:
        for record in self._read(topic):
            for samples in self._decode(lambda value, r=record: decode(value, dict(r.headers)), record) or []:  # type: ignore[misc]
                if on_group:
                    on_group(samples)
                yield summarise(samples, (record.partition, record.offset))

    def _read_finished(self) -> dict[int, OffsetSet]:
        from kafka import KafkaConsumer

        consumer = KafkaConsumer(group_id=self._topics.rollout_group, **self._kafka.consumer_options())
        try:
            return finished_prompts(consumer, self._readers[self._topics.prompts].partitions)
        finally:
            consumer.close()


def finished_prompts(consumer: Any, partitions: Sequence[Any]) -> dict[int, OffsetSet]:
    """What the rollout pipeline committed as finished, by prompts partition.

    Args:
        consumer: a ``KafkaConsumer`` with the pipeline's group; it need not be assigned anything.
        partitions: of the prompts topic.
    """
    committed = {partition.partition: consumer.committed(partition, metadata=True) for partition in partitions}
    return {
        partition: OffsetSet.decode(found.offset, found.metadata)
        for partition, found in committed.items()
        if found is not None and found.offset >= 0
    }
