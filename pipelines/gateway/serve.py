"""The process: checks, opens and closes what the gateway is made of.

    configuration ─► port ─► tokenizer, receipts, Kafka ─► uvicorn until SIGTERM or Ctrl-C

Exit code 0 after a signal. What the user can mend is raised before anything is served.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from pipelines.gateway.app import Parts, build
from pipelines.gateway.appender import Appender
from pipelines.gateway.desk import Desk
from pipelines.gateway.fates import Fates
from pipelines.gateway.follow import Followers
from pipelines.gateway.judging import Judging
from schemas import traces
from schemas.errors import ConfigError
from schemas.reach import unreachable
from schemas.receipts import Receipts
from transforms.generation import engine
from transforms.generation.discovery import Discovery
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import Workers
from transforms.listening import reserve_port

if TYPE_CHECKING:
    from schemas.config import RunConfig
    from schemas.identity import RolloutId

_LOG = structlog.get_logger(__name__)
_CONNECTIONS: Final = 8192
"""Most connections at once; further ones are answered 503."""
_GRACE_S: Final = 5
"""How long answers may go on after SIGTERM."""
_KEEP_ALIVE_S: Final = 30
_HEADER_BYTES: Final = 1 << 16
_SHARE: Final = 0
"""Of the figures of workers."""


def run(config: RunConfig) -> int:
    """Serves until it is told to stop.

    Returns:
        The exit code.

    Raises:
        UserError: port, model, key file, broker or topic.
    """
    if not config.model.path:
        raise ConfigError("model.path is empty: the gateway tokenises with the run's model; give its directory")
    with reserve_port("gateway", config.gateway.host, config.gateway.port) as listener:
        tokenizer = Tokenizer.load(config.model.path)
        receipts = Receipts.load(config.feedback.key_file) if config.feedback.key_file else None
        traces.open_tracing(config.tracing, config.name, "gateway")
        _raise_file_limit()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, listener, tokenizer, receipts))
        traces.close_tracing()
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


async def _serve(config: RunConfig, listener: socket.socket, tokenizer: Tokenizer, receipts: Receipts | None) -> None:
    async with parts_of(config, tokenizer, receipts) as parts:
        server = server_of(parts)
        _LOG.info("serving", url=f"http://{config.gateway.host}:{config.gateway.port}/", run=config.name)
        await server.serve(sockets=[listener])


def server_of(parts: Parts) -> uvicorn.Server:
    """The HTTP server, which ends on SIGTERM and SIGINT if it runs in the main thread."""
    behind_proxy = parts.config.gateway.trusts_user_header
    settings = uvicorn.Config(
        build(parts), log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
        limit_concurrency=_CONNECTIONS, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_GRACE_S,
        proxy_headers=behind_proxy, forwarded_allow_ips="*" if behind_proxy else None,
        http="h11", h11_max_incomplete_event_size=_HEADER_BYTES,
    )  # fmt: skip
    return _Server(settings)


class _Server(uvicorn.Server):
    """Ends on SIGTERM and SIGINT; uvicorn's own then sends itself the signal again, and ends with its code."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listens to signals while it is open; only the main thread can."""
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@asynccontextmanager
async def parts_of(config: RunConfig, tokenizer: Tokenizer, receipts: Receipts | None) -> AsyncIterator[Parts]:
    """What the routes are made of, for as long as it is open; on the event loop that serves.

    Raises:
        BrokerError: Kafka cannot be reached, or a topic is missing.
    """
    from kafka.errors import KafkaError

    fates, rollout = Fates(config.feedback), config.rollout
    try:
        followers = await asyncio.to_thread(Followers, config, fates)
        appender = await asyncio.to_thread(Appender, config.kafka)
    except KafkaError as error:
        raise unreachable(config.kafka, error) from error
    session = engine.open_session(rollout.request_timeout_s, config.worker.key())
    workers = Workers(rollout.workers, session, _SHARE, rollout.frozen_after_s)
    discovery = Discovery(config, workers, asyncio.get_running_loop())
    try:
        desk = Desk(config, tokenizer, appender, session, workers)
        issue = _issuer(receipts, config.feedback.receipt_s)
        yield Parts(config, desk, Judging(config, appender, receipts), fates, issue)
    finally:
        discovery.stop()
        followers.stop()
        workers.close()
        await session.close()
        await asyncio.to_thread(appender.close)


def _issuer(receipts: Receipts | None, lasts_s: float) -> Callable[[RolloutId, str], str | None]:
    if receipts is None:
        return lambda _rollout, _user: None
    return lambda rollout, user: receipts.issue(rollout, user, time.time() + lasts_s)


def _raise_file_limit() -> None:
    """Every client is a file; shells often allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
