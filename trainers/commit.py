"""What the learner writes to Kafka: all of a step in one transaction, or nothing of it.

    ledger entry + weight version + admission frontier (+ dead letters) ──► one transaction, id {run}.learner

``init_transactions`` of a newer learner aborts what this one left open and fences it for ever.
"""

from collections.abc import Sequence
from typing import Final

import structlog
from kafka.errors import KafkaError

from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError
from schemas.ledger import AdoptEntry, CheckpointEntry, StartEntry, StepEntry, UpdateEntry
from schemas.trace_context import TraceContext
from schemas.traces import headers_of
from schemas.transactions import open_producer, transaction
from schemas.weights import WeightVersion
from trainers.log import CONNECT_TIMEOUT_MS

Announcement = (
    StartEntry | StepEntry | CheckpointEntry | UpdateEntry | AdoptEntry | WeightVersion | AdmissionFrontier | DeadLetter
)

_ATTEMPTS: Final = 5
_log = structlog.get_logger(__name__)


class Committer:
    """The learner's producer. Creating it fences every older learner of the run."""

    def __init__(self, config: RunConfig) -> None:
        self._run, self._topics = config.name, config.topics
        timeout = {"bootstrap_timeout_ms": CONNECT_TIMEOUT_MS}
        self._producer = open_producer(config.kafka, config.topics.learner_id, **timeout)
        self._fenced = (
            f"a newer learner writes to run {self._run!r}, or this one was away for longer than "
            "kafka.transaction_timeout_s: it ends"
        )

    def commit(self, records: Sequence[Announcement], trace: TraceContext | None = None) -> None:
        """Writes all records in one transaction; returns when it is committed.

        Args:
            records: of any kinds.
            trace: the span that those of workers go below which load the weights; null where nothing is traced.

        Raises:
            FencedError: a newer learner has taken over.
            BrokerError: the transaction failed again and again, or cannot be aborted.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._try(records, trace)
            except KafkaError as error:
                _log.error("transaction failed", attempt=attempt, error=str(error))
            else:
                return
        raise BrokerError(f"Kafka refused a transaction of run {self._run!r} {_ATTEMPTS} times; see its log")

    def _try(self, records: Sequence[Announcement], trace: TraceContext | None) -> None:
        with transaction(self._producer, self._fenced):
            futures = [
                self._producer.send(
                    *self._place(record), headers=headers_of(trace if isinstance(record, WeightVersion) else None)
                )
                for record in records
            ]
            self._producer.flush()
            crash_point("in_transaction")
        for future in futures:
            future.get(timeout=0)  # committed means delivered; this raises what went wrong otherwise
        crash_point("after_transaction")

    def _place(self, record: Announcement) -> tuple[str, bytes, bytes]:
        key = record.key() if isinstance(record, DeadLetter) else self._run.encode()
        return self._topic(record), record.encode(), key

    def _topic(self, record: Announcement) -> str:
        if isinstance(record, WeightVersion):
            return self._topics.weights
        if isinstance(record, AdmissionFrontier):
            return self._topics.admission
        return self._topics.dead_letters if isinstance(record, DeadLetter) else self._topics.ledger

    def close(self) -> None:
        """Closes the connection."""
        self._producer.close(timeout=5)
