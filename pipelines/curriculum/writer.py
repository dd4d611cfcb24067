"""A batch of prompts in one transaction: all of it is in the log, or nothing.

    prompts with their numbers ──► one Kafka transaction, id {run}.curriculum ──► their places

A newer curriculum of the run fences the older one for ever, so no number is written twice.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.errors import BrokerError
from schemas.identity import GroupId
from schemas.reach import unreachable
from schemas.transactions import open_producer, transaction


class Numbered(NamedTuple):
    """A prompt that is to be written."""

    number: int
    pool: str
    prompt_id: str
    value: bytes


class Writer:
    """The producer of a curriculum. Opening it ends every older one of the run.

    Raises:
        BrokerError: Kafka cannot be reached.
    """

    def __init__(self, config: RunConfig) -> None:
        from kafka.errors import KafkaError

        self._kafka, self._topic = config.kafka.bootstrap, config.topics.prompts
        self._fenced = (
            f"a newer curriculum draws for run {config.name!r}, or this one was away for longer than "
            "kafka.transaction_timeout_s: it ends"
        )
        try:
            self._producer = open_producer(config.kafka, config.topics.curriculum_id)
        except (KafkaError, OSError) as error:
            raise unreachable(config.kafka, error) from error

    def write(self, prompts: Sequence[Numbered], partitions: int) -> list[GroupId]:
        """Writes prompts over the partitions, each to that of its number.

        Returns:
            Their places, in the same order, once all of them are committed.

        Raises:
            FencedError: a newer curriculum has taken over.
            BrokerError: it failed, and whether they are in the log has to be read there.
        """
        from kafka.errors import KafkaError

        try:
            with transaction(self._producer, self._fenced):
                sent = [self._send(each, each.number % partitions) for each in prompts]
                self._producer.flush()
                crash_point("prompts_sent")
            crash_point("prompts_committed")
            found = [future.get(timeout=0) for future in sent]  # committed means delivered
        except KafkaError as error:
            raise BrokerError(f"Kafka at {self._kafka} did not take the prompts: {error!r}") from error
        return [GroupId(record.partition, record.offset) for record in found]

    def _send(self, prompt: Numbered, partition: int) -> Any:
        return self._producer.send(self._topic, prompt.value, key=prompt.prompt_id.encode(), partition=partition)

    def close(self) -> None:
        """Closes the connection."""
        self._producer.close(timeout=5)
