"""Writing records to a topic and waiting until all are acknowledged, as any producer can."""

from collections.abc import Iterable
from typing import NamedTuple

from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from schemas.producers import connect_producer


class Entry(NamedTuple):
    """A record to be written."""

    value: bytes
    key: bytes | None
    partition: int | None = None
    """Null: by the key."""


def append(kafka: KafkaConfig, topic: str, entries: Iterable[Entry], what: str) -> int:
    """Writes records in their order.

    Args:
        kafka: how to reach the broker.
        topic: where to.
        entries: the records.
        what: they are, in words, for the message if Kafka refuses them.

    Returns:
        How many were written, all of them acknowledged.

    Raises:
        BrokerError: Kafka cannot be reached, or did not take one of them.
        ConfigError: ``kafka.client`` holds what is none of kafka-python's settings.
    """
    from kafka.errors import KafkaError

    try:
        producer = connect_producer(kafka.producer_options())
        try:
            sent = [producer.send(topic, each.value, key=each.key, partition=each.partition) for each in entries]
            for future in sent:
                future.get(timeout=kafka.request_timeout_s)
        finally:
            producer.close()
    except KafkaError as error:
        raise BrokerError(f"Kafka at {kafka.bootstrap} did not take {what}: {error!r}") from error
    return len(sent)
