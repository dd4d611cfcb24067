"""A batch of prompts in one transaction: all of it is in the log, or nothing.

    prompts with their numbers ──► one Kafka transaction, id {run}.curriculum ──► their places

A newer curriculum of the run fences the older one for ever, so no number is written twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.errors import BrokerError, FencedError
from schemas.identity import GroupId
from schemas.transactions import is_fencing, open_producer


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

        self._config = config
        try:
            self._producer = open_producer(config.kafka, config.topics.curriculum_id)
        except (KafkaError, OSError) as error:
            raise BrokerError(
                f"Kafka at {config.kafka.bootstrap} cannot be reached ({error!r}); start it, or give its address"
            ) from error

    def write(self, prompts: Sequence[Numbered], partitions: int) -> list[GroupId]:
        """Writes prompts over the partitions, each to that of its number.

        Returns:
            Their places, in the same order, once all of them are committed.

        Raises:
            FencedError: a newer curriculum has taken over.
            BrokerError: it failed, and whether they are in the log has to be read there.
        """
        from kafka.errors import KafkaError

        topic = self._config.topics.prompts
        try:
            self._producer.begin_transaction()
            sent = [
                self._producer.send(topic, each.value, key=each.prompt_id.encode(), partition=each.number % partitions)
                for each in prompts
            ]
            self._producer.flush()
            crash_point("prompts_sent")
            self._producer.commit_transaction()
            crash_point("prompts_committed")
            found = [future.get(timeout=0) for future in sent]
        except KafkaError as error:
            raise self._in_words(error) from error
        return [GroupId(record.partition, record.offset) for record in found]

    def _in_words(self, error: Exception) -> FencedError | BrokerError:
        if is_fencing(error):
            return FencedError(
                f"a newer curriculum draws for run {self._config.name!r}, or this one was away for longer than "
                "kafka.transaction_timeout_s: it ends"
            )
        return BrokerError(f"Kafka at {self._config.kafka.bootstrap} did not take the prompts: {error!r}")

    def close(self) -> None:
        """Closes the connection."""
        self._producer.close(timeout=5)
