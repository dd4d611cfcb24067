"""kafka-python's consumer, whose partitions come back from a pause."""

from typing import Any

from kafka import KafkaConsumer


class PausingConsumer(KafkaConsumer):  # type: ignore[misc]
    """A consumer of partitions that are paused and resumed one by one.

    kafka-python 3.0.12 puts aside what it has fetched of a paused partition, and takes it up again only while no other
    answer stands in its line; one that is used up stands there until the next one comes (``Fetcher.fetched_records``
    asks ``is None`` where it means the truth of it). If every other partition is paused or read to its end no next one
    comes, and the resumed partition is neither given nor fetched again. So what is used up is cleared away first.
    """

    def poll(self, timeout_ms: int = 0, max_records: int | None = None, update_offsets: bool = True) -> Any:
        """As kafka-python's."""
        fetcher = self._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None
        return super().poll(timeout_ms=timeout_ms, max_records=max_records, update_offsets=update_offsets)
