"""Reading Kafka: topics to their end, consumers with an explicit start, errors in words."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import (
    AuthorizationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
)

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, StateError
from schemas.reach import unreachable

CONNECT_TIMEOUT_MS: Final = 15_000
"""How long the first contact with the brokers may take before the user is told."""
_READ_TIMEOUT_MS: Final = 200


class Reaches(Protocol):
    """A configuration that says how to reach Kafka: a run's, or a federation's."""

    @property
    def kafka(self) -> KafkaConfig:
        """The section of that name."""
        ...


@contextmanager
def broker_errors(config: Reaches) -> Iterator[None]:
    """Turns a broker that cannot be reached, or that refuses, into a sentence.

    Raises:
        BrokerError: instead of kafka-python's errors of time, connection, log-in and rights.
        StateError: records that were not read yet are gone.
    """
    try:
        yield
    except (KafkaTimeoutError, KafkaConnectionError, SaslAuthenticationFailedError, AuthorizationError) as error:
        raise unreachable(config.kafka, error) from error
    except OffsetOutOfRangeError as error:
        raise StateError(f"records that were not read yet are gone from the log, by retention: {error}") from error


def open_consumer(config: Reaches) -> Any:
    """A consumer of committed records without a group."""
    return KafkaConsumer(**{"bootstrap_timeout_ms": CONNECT_TIMEOUT_MS, **config.kafka.consumer_options()})


def partitions_of(consumer: Any, topic: str) -> list[TopicPartition]:
    """All partitions of a topic.

    Raises:
        BrokerError: the topic does not exist.
    """
    found = consumer.partitions_for_topic(topic)  # asks the broker, once a consumer, about all topics: none is created
    if not found:
        raise BrokerError(f"topic {topic!r} does not exist; create the topics of the run, or correct the run's name")
    return [TopicPartition(topic, partition) for partition in sorted(found)]


def assign(consumer: Any, starts: dict[TopicPartition, int | None]) -> None:
    """Reads each partition from an offset, or from its beginning where that is None.

    Raises:
        StateError: an offset lies outside of the log: records that should be read are lost.
    """
    partitions = list(starts)
    consumer.assign(partitions)
    first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    for partition, start in starts.items():
        if start is not None and not first[partition] <= start <= end[partition]:
            raise StateError(
                f"{partition.topic}[{partition.partition}] holds offsets {first[partition]} to {end[partition]}, "
                f"expected it to go on at {start}: records are lost; restore the topic or start a new run"
            )
        consumer.seek(partition, first[partition] if start is None else start)


def read_to_end(consumer: Any, starts: dict[TopicPartition, int | None]) -> Iterator[Any]:
    """All committed records from the given offsets up to the end at the time of the call."""
    if not starts:
        return
    assign(consumer, starts)
    ends = consumer.end_offsets(list(starts))
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for partition, records in consumer.poll(timeout_ms=_READ_TIMEOUT_MS).items():
            yield from (record for record in records if record.offset < ends[partition])


def read_topic(config: Reaches, topic: str) -> list[Any]:
    """A whole topic."""
    return list(stream_topic(config, topic))


def stream_topic(config: Reaches, topic: str) -> Iterator[Any]:
    """A whole topic up to its end at the time of the call, without keeping it."""
    consumer = open_consumer(config)
    try:
        yield from read_to_end(consumer, dict.fromkeys(partitions_of(consumer, topic)))
    finally:
        consumer.close()


def read_record(consumer: Any, partition: TopicPartition, offset: int) -> Any:
    """The record at one place.

    Raises:
        StateError: there is none, or none any more.
    """
    assign(consumer, {partition: offset})
    end = consumer.end_offsets([partition])[partition]
    while consumer.position(partition) < end:
        for record in consumer.poll(timeout_ms=_READ_TIMEOUT_MS, max_records=1).get(partition, []):
            if record.offset == offset:
                return record
            raise StateError(f"{partition.topic}[{partition.partition}] has no record at {offset} any more")
    raise StateError(f"{partition.topic}[{partition.partition}] has no record at {offset}")


def topic_ids(config: Reaches, topics: Iterable[str]) -> dict[str, str]:
    """The broker's unique id of each topic: another one after a topic was deleted and made again."""
    client = KafkaAdminClient(**{"bootstrap_timeout_ms": CONNECT_TIMEOUT_MS, **config.kafka.client_options()})
    try:
        return {topic["name"]: str(topic["topic_id"]) for topic in client.describe_topics(list(topics))}
    except KafkaError as error:
        raise BrokerError(f"topics cannot be described: {error}") from error
    finally:
        client.close()
