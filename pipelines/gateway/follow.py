"""The gateway's ears: three topics, followed into what it knows of fates."""

from typing import Any

from pipelines.gateway.fates import Fates
from schemas.config import RunConfig
from schemas.ledger import LedgerEntry, decode_entry
from schemas.outcomes import Outcome
from schemas.weights import WeightVersion
from transforms.generation.follow import TopicFollower


class _Ledger:
    """Reads entries of any kind."""

    @staticmethod
    def decode(value: bytes) -> LedgerEntry:
        return decode_entry(value)


class Followers:
    """Follow while they are open. What was decided longer ago than feedback can matter is not read again.

    Raises:
        BrokerError: a topic is missing.
    """

    def __init__(self, config: RunConfig, fates: Fates) -> None:
        feedback, topics, kafka = config.feedback, config.topics, config.kafka
        last_s = feedback.wait_s + feedback.correction_s + feedback.receipt_s
        self._followers: list[TopicFollower[Any]] = [
            TopicFollower(kafka, topics.outcomes, Outcome, fates.apply_outcome, last_s),
            TopicFollower(kafka, topics.ledger, _Ledger(), fates.apply_entry, last_s),
            TopicFollower(kafka, topics.weights, WeightVersion, fates.apply_weights),
        ]
        for follower in self._followers:
            follower.start()

    def stop(self) -> None:
        """Ends their threads."""
        for follower in self._followers:
            follower.stop()
