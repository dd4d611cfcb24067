"""Kafka producers with a transactional id, for all who write in transactions: learner, pipelines and curriculum.

    open_producer ──► fences whoever had the id before, and aborts what they left open ──► ready
    transaction   ──► what is sent within is committed whole, or nothing of it; none follows one whose end was asked for
                      again, for the first request could still come, and end it early

kafka-python is imported when a producer is opened.
"""

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, FencedError
from schemas.producers import connect_producer

_FENCED: Final = ("ProducerFenced", "PRODUCER_FENCED", "InvalidProducerEpoch", "INVALID_PRODUCER_EPOCH")
_PAUSE_S: Final = 0.05
_ENDS: Final = "EndTxnRequest"
_TRANSACTIONAL: Final = (
    "InitProducerIdRequest", "AddPartitionsToTxnRequest", "AddOffsetsToTxnRequest", "TxnOffsetCommitRequest", _ENDS,
)  # fmt: skip
_IN_DOUBT: Final = (
    "Kafka did not answer in time when an earlier transaction was to end, and did when it was asked again: the first "
    "request could still end a later one early, so this process ends and the next one fences it; if it happens often, "
    "raise kafka.request_timeout_s"
)
_FINDS_COORDINATOR: Final = "FindCoordinatorRequest"
_LOG = structlog.get_logger(__name__)
_in_doubt: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""Producers that asked again to end a transaction, because nobody had answered in time.

The first request may lie with a broker that was stopped, and would end whatever transaction of the same epoch is open
when it goes on: half of it. What kafka-python asks again by itself, after a connection that was lost, is not
counted.
"""


def open_producer(kafka: KafkaConfig, transactional_id: str, **options: Any) -> Any:
    """A ``KafkaProducer`` that owns the id from now on; older ones with it are fenced for ever.

    Args:
        kafka: of the run.
        transactional_id: one of :class:`schemas.topics.Topics`.
        options: over those of the configuration.

    Raises:
        ConfigError: ``kafka.client`` holds what is none of kafka-python's settings.
        KafkaError: no broker answers, or the coordinator is silent for ``kafka.transaction_timeout_s``.
    """
    producer = connect_producer({**kafka.producer_options(transactional_id), **options})
    _Patience(producer, kafka.transaction_timeout_s)
    producer.init_transactions()
    return producer


class _Patience:
    """How long a producer asks again when its coordinator is silent. All but its making is of kafka-python's thread.

    Args:
        producer: not yet initialised.
        most_s: after the first request that nobody answered in time; by then the broker has aborted the transaction.
    """

    def __init__(self, producer: Any, most_s: float) -> None:
        self._producer, self._most_s = producer, most_s
        self._since_s: float | None = None
        client = producer._sender._client
        client.await_ready = self._keep_requests(client.await_ready)
        client.send = self._ask_again(client.send)

    def _keep_requests(self, await_ready: Callable[..., Any]) -> Callable[..., bool]:
        """Has a connection that fails count as one that is not ready yet.

        kafka-python 3.0.12 retries a transactional request whose coordinator is not ready, but forgets one
        whose connection raises (``Sender._maybe_send_pending_request``): a broker that is restarted at that
        moment would leave the transaction waiting for ever.
        """
        from kafka.errors import KafkaError

        def patient(*arguments: Any, **named: Any) -> bool:
            try:
                return bool(await_ready(*arguments, **named))
            except KafkaError as error:
                if self._is_over():
                    self._give_up(error)
                time.sleep(_PAUSE_S)
                return False

        return patient

    def _ask_again(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """Has a request that nobody answered in time count as one whose connection was lost, which is tried again.

        kafka-python 3.0.12 closes the connection of a request that takes too long, and tries again what else was on
        its way there, but gives up the producer for ever if the request was a transactional one
        (``TxnRequestHandler.on_complete``): a broker that is cut off would end whoever writes.
        """
        from kafka.errors import KafkaConnectionError, RequestTimedOutError
        from kafka.future import Future

        def send_again(node: Any, request: Any, **named: Any) -> Any:
            answer, told = send(node, request, **named), Future()

            def succeed(response: Any) -> None:
                if type(request).__name__ in _TRANSACTIONAL:
                    self._since_s = None
                told.success(response)

            def fail(error: Exception) -> None:
                if isinstance(error, RequestTimedOutError) and type(request).__name__ == _ENDS:
                    _in_doubt.add(self._producer)
                again = isinstance(error, RequestTimedOutError) and self._may_ask_again(node, type(request).__name__)
                told.failure(KafkaConnectionError(str(error)) if again else error)

            answer.add_callback(succeed).add_errback(fail)
            return told

        return send_again

    def _may_ask_again(self, node: Any, request: str) -> bool:
        """Takes note of a request that was not answered in time."""
        if request in _TRANSACTIONAL or request == _FINDS_COORDINATOR:
            self._since_s = self._since_s or time.monotonic()
        _LOG.warning("a broker does not answer, asking again", broker=node, request=request, most_s=self._most_s)
        return not self._is_over()

    def _is_over(self) -> bool:
        return self._since_s is not None and time.monotonic() - self._since_s > self._most_s

    def _give_up(self, error: Exception) -> None:
        """Ends the producer and fails what waits for it: its thread looks for a coordinator for ever, otherwise."""
        manager = self._producer._transaction_manager
        with manager._lock:
            if manager.has_fatal_error():
                return
            _LOG.error("a broker does not answer, giving up", error=str(error), most_s=self._most_s)
            manager.transition_to_fatal_error(error)
            for *_, waiting in manager._pending_requests:
                waiting.fail(error)
        self._producer._sender.force_close()


@contextlib.contextmanager
def transaction(producer: Any, fenced: str) -> Iterator[None]:
    """Commits at the end what is sent within; if anything fails it is taken back, and can be tried again.

    Args:
        producer: of :func:`open_producer`.
        fenced: what to say if a newer producer has its id.

    Raises:
        FencedError: one has.
        KafkaError: the transaction failed and is aborted.
        Exception: what was raised within; the transaction is aborted.
        BrokerError: it failed and cannot be aborted: whether it was committed the next owner of the id finds out. Or an
            earlier one was ended only when that was asked for again: only a new producer may begin another.
    """
    if producer in _in_doubt:
        raise BrokerError(_IN_DOUBT)
    try:
        producer.begin_transaction()
        yield
        producer.commit_transaction()
    except Exception as error:
        _abort(producer, error, fenced)
        raise


def _abort(producer: Any, cause: BaseException, fenced: str) -> None:
    from kafka.errors import KafkaError

    if is_fencing(cause):
        raise FencedError(fenced) from cause
    try:
        producer.abort_transaction()
    except KafkaError as error:
        if is_fencing(error):
            raise FencedError(fenced) from error
        raise BrokerError(f"a transaction failed ({cause!r}) and cannot be aborted ({error!r})") from error


def is_fencing(error: BaseException) -> bool:
    """Whether a producer's error says that a newer one has its id, or that its transaction took too long.

    Once its sender thread knows, kafka-python raises a bare KafkaError that only quotes the reason.
    """
    return any(name in repr(error) for name in _FENCED)
