"""Kafka producers with a transactional id, for all who write in transactions: learner, pipelines and curriculum.

    open_producer ──► fences whoever had the id before, and aborts what they left open ──► ready
    transaction   ──► what is sent within is committed whole, or nothing of it

kafka-python is imported when a producer is opened.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, FencedError
from schemas.producers import connect_producer

_FENCED: Final = ("ProducerFenced", "PRODUCER_FENCED", "InvalidProducerEpoch", "INVALID_PRODUCER_EPOCH")
_PAUSE_S: Final = 0.05


def open_producer(kafka: KafkaConfig, transactional_id: str, **options: Any) -> Any:
    """A ``KafkaProducer`` that owns the id from now on; older ones with it are fenced for ever.

    Args:
        kafka: of the run.
        transactional_id: one of :class:`schemas.topics.Topics`.
        options: over those of the configuration.

    Raises:
        ConfigError: ``kafka.client`` holds what is none of kafka-python's settings.
        KafkaError: no broker answers.
    """
    producer = connect_producer({**kafka.producer_options(transactional_id), **options})
    _keep_requests(producer._sender._client)
    _ask_again(producer._sender._client)
    producer.init_transactions()
    return producer


def _keep_requests(client: Any) -> None:
    """Has a connection that fails count as one that is not ready yet.

    kafka-python 3.0.12 retries a transactional request whose coordinator is not ready, but forgets one
    whose connection raises (``Sender._maybe_send_pending_request``): a broker that is restarted at that
    moment would leave the transaction waiting for ever.
    """
    from kafka.errors import KafkaError

    await_ready = client.await_ready

    def patient(*arguments: Any, **named: Any) -> bool:
        try:
            return bool(await_ready(*arguments, **named))
        except KafkaError:
            time.sleep(_PAUSE_S)
            return False

    client.await_ready = patient


def _ask_again(client: Any) -> None:
    """Has a request that nobody answered in time count as one whose connection was lost, which is tried again.

    kafka-python 3.0.12 closes the connection of a request that takes too long, and tries again what else was on its
    way there, but gives up the producer for ever if the request was a transactional one
    (``TxnRequestHandler.on_complete``): a broker that is cut off would end whoever writes.
    """
    from kafka.errors import KafkaConnectionError, RequestTimedOutError
    from kafka.future import Future

    send = client.send

    def send_again(*arguments: Any, **named: Any) -> Any:
        answer, told = send(*arguments, **named), Future()

        def fail(error: Exception) -> None:
            told.failure(KafkaConnectionError(str(error)) if isinstance(error, RequestTimedOutError) else error)

        answer.add_callback(told.success).add_errback(fail)
        return told

    client.send = send_again


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
        BrokerError: it failed and cannot be aborted: whether it was committed the next owner of the id finds out.
    """
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
