"""Reading some partitions and not others, for whoever reads ahead into buffers that fill up."""

from collections.abc import Mapping
from typing import Any


def read_only(consumer: Any, wanted: set[Any], next_offsets: Mapping[int, int]) -> None:
    """Has a ``KafkaConsumer`` read exactly these partitions of one topic.

    Not by ``pause``: kafka-python 3.0.12 forgets to take up partitions that were paused while it held
    fetched records of them.

    Args:
        consumer: assigned by this function alone.
        wanted: ``TopicPartition``.
        next_offsets: where each partition goes on, by its number.
    """
    known = consumer.assignment()
    if known == wanted:
        return
    consumer.assign(sorted(wanted))
    for partition in wanted - known:
        consumer.seek(partition, next_offsets[partition.partition])
