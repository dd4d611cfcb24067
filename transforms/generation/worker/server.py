"""A vLLM worker: the stock OpenAI server with a weight follower beside it in one event loop.

    run ─► port, model, broker checked ─► engine started and warmed ─► first version applied ─► serving
                                                                        └── follower goes on ──┘
                               (alone: no broker, no follower; the model's own weights are version 1)

Exit codes: 0 after SIGTERM or SIGINT; 1 if the engine died or its weights are wrong. What the user
can mend is raised as a ``UserError``.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from schemas import traces
from schemas.errors import AsyncFlowError, ConfigError, StateError, UserError
from transforms.generation.worker.alone import serve_alone
from transforms.generation.worker.announcements import Announcements
from transforms.generation.worker.arguments import parse_arguments, prepare_environment
from transforms.generation.worker.engine import VllmEngine
from transforms.generation.worker.follower import Follower
from transforms.generation.worker.gate import install
from transforms.generation.worker.reader import ReaderProcess
from transforms.generation.worker.registrar import Registrar
from transforms.generation.worker.seeds import ignore_seeds
from transforms.generation.worker.state import Metrics, WorkerState
from transforms.generation.worker.verify import read_expectation
from transforms.listening import reserve_port

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Iterator

    from schemas.config import RunConfig
    from schemas.weights import WeightVersion
    from transforms.generation.worker.verify import Expectation

_GRACE_S: Final = 3
"""How long running requests may go on after SIGTERM; clients ask another worker then."""
_WATCH_S: Final = 0.5
"""Pause between two looks whether the engine process lives."""
_SWITCH_S: Final = 0.0001
"""How long a thread that hears of a version waits for Python's lock while the event loop streams tokens, some dozen
times for each. Python's own 5 ms made 0.1 s of it."""
_PROBE_TOLERANCE: Final = {"float32": 1e-3}
_PROBE_TOLERANCE_16_BIT: Final = 0.1

log = structlog.get_logger(__name__)


def run(config: RunConfig) -> int:
    """Serves until it is told to stop.

    Returns:
        The exit code.

    Raises:
        UserError: port, model, broker, topic or a setting of vLLM.
    """
    try:
        with _interruptible() as early, reserve_port("worker", config.worker.host, config.worker.port) as listener:
            return _run_loop(config, listener, early)
    except KeyboardInterrupt:
        return 0
    except UserError:
        raise
    except AsyncFlowError as error:
        log.critical("worker_stopped", reason=str(error), kind=type(error).__name__)
        return 1


def _run_loop(config: RunConfig, listener: socket.socket, early: _Interruption) -> int:
    from prometheus_client import REGISTRY

    config.worker.key()  # is there, before an engine is started for minutes
    expectation = read_expectation(Path(config.model.path), config.worker.max_model_len_tokens, config.learner.lora)
    announcements = None if config.worker.alone else Announcements(config)
    state = WorkerState(Metrics(REGISTRY), config.worker.max_model_len_tokens)
    prepare_environment(eager=config.worker.enforce_eager, tracing=config.tracing)
    traces.open_tracing(config.tracing, config.name, "worker")
    sys.setswitchinterval(_SWITCH_S)
    with _connected(config, state, expectation, announcements) as run:
        worker = _Worker(config, listener, early, state, run)
        import uvloop

        code: int = uvloop.run(worker.main())
    traces.close_tracing()
    gc.unfreeze()  # vLLM's server froze the heap, and with it a client that must not outlive the modules it needs
    gc.collect()
    return code


@dataclass(frozen=True)
class _Run:
    """What ties a worker to the run whose weights it follows."""

    announcements: Announcements
    reader: ReaderProcess
    registrar: Registrar


@contextmanager
def _connected(
    config: RunConfig, state: WorkerState, expectation: Expectation, announcements: Announcements | None
) -> Iterator[_Run | None]:
    """The run; null for a worker that follows none."""
    if announcements is None:
        yield None
        return
    announcements.on_bad_record = state.refuse
    with ReaderProcess(config.weights.root, expectation) as reader:
        yield _Run(announcements, reader, Registrar(config, state))


@dataclass
class _Interruption:
    """Whether SIGTERM or SIGINT came before the event loop took signals over."""

    received: bool = False


@contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """SIGTERM and SIGINT raise until the event loop takes them over: vLLM's start blocks it for seconds.

    The exception can get lost in a callback of C code, so the signal is remembered too.
    """
    interruption = _Interruption()

    def interrupt(number: int, _: object) -> None:
        interruption.received = True
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Worker:
    """One run of the server; its methods read top-down."""

    config: RunConfig
    listener: socket.socket
    early: _Interruption
    state: WorkerState
    run: _Run | None
    server: Any = None
    """uvicorn's, from the first applied version on."""

    async def main(self) -> int:
        """Returns the exit code."""
        try:
            first = await self._first_announcement()
            arguments = parse_arguments(self.config, self._dtype(first))
            async with _start_engine(arguments) as client:
                return await self._serve(client, arguments, first)
        finally:
            await asyncio.get_running_loop().shutdown_default_executor()
            if self.run is not None:
                self.run.announcements.close()
                self.run.registrar.close()

    async def _first_announcement(self) -> WeightVersion | None:
        """Waits for one only if nothing else says which dtype the engine shall have."""
        if self.run is None:
            return None
        announcements = self.run.announcements
        first = await asyncio.to_thread(announcements.newest, 1)
        while first is None and self.config.model.dtype == "auto":
            log.info("waiting_for_first_version", topic=self.config.topics.weights)
            first = await asyncio.to_thread(announcements.newest, 5)
        return first

    def _dtype(self, first: WeightVersion | None) -> str:
        configured = self.config.model.dtype
        return first.dtype if configured == "auto" and first is not None else configured

    async def _serve(self, client: Any, arguments: Namespace, first: WeightVersion | None) -> int:
        stop = _stop_on_signals()
        if self.early.received:
            stop.set()
        parts = (self._follow(client, first), self._listen(client, arguments), _watch(client), stop.wait())
        tasks = [asyncio.create_task(part) for part in parts]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        try:
            if stop.is_set():
                return 0
            for task in done:
                task.result()
            raise StateError("the HTTP server ended although nothing stopped it")
        finally:
            await self._shut_down(tasks, at_once=not stop.is_set())

    async def _follow(self, client: Any, first: WeightVersion | None) -> None:
        engine, dtype = VllmEngine(client), str(client.model_config.dtype)
        await engine.prepare()
        if self.run is None:
            await serve_alone(engine, self.state, self.config.model.path, dtype.removeprefix("torch."))
            return
        tolerance = self.config.worker.probe_tolerance or default_tolerance(dtype)
        source = self.run.announcements
        follower = Follower(source, self.run.reader.read, engine, self.state, tolerance, source.trace_of)
        await follower.run(first)

    async def _listen(self, client: Any, arguments: Namespace) -> None:
        """Serves from the first applied version on; the port refuses connections before."""
        await self.state.wait_for_version(1, None)
        self.server = await _build_server(client, arguments, self.state, self.config)
        log.info("serving", host=arguments.host, port=arguments.port, version=self.state.version)
        if self.run is not None:
            self.run.registrar.start()
        await self.server.serve(sockets=[self.listener])

    async def _shut_down(self, tasks: list[asyncio.Task[Any]], *, at_once: bool) -> None:
        """Answers what is running within the grace, unless the weights or the engine are broken."""
        if self.run is not None and not at_once:
            await self.run.registrar.leave()  # an engine that broke does not say so: it counts as a death
        await self.state.stop()
        if self.server is not None:
            self.server.should_exit, self.server.force_exit = True, at_once
            await asyncio.wait([tasks[1]], timeout=_GRACE_S + 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _start_engine(arguments: Namespace) -> AsyncIterator[Any]:
    """Raises ``ConfigError`` if vLLM refuses its settings."""
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.platforms import current_platform
    from vllm.utils.system_utils import set_ulimit

    set_ulimit()
    context = build_async_engine_client(arguments)
    try:
        client = await context.__aenter__()
    except ValueError as error:
        raise ConfigError(f"vLLM refuses the worker's settings: {error}") from error
    if current_platform.is_cpu():
        ignore_seeds(client)
    try:
        yield client
    finally:
        await context.__aexit__(None, None, None)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _watch(client: Any) -> None:
    """Returns never; raises when the engine process is gone."""
    while not client.errored:
        await asyncio.sleep(_WATCH_S)
    raise StateError("the vLLM engine process died; its last lines in this log say why")


async def _build_server(client: Any, arguments: Namespace, state: WorkerState, config: RunConfig) -> Any:
    """VLLM's application with the gate in front, in a uvicorn server that leaves signals to us."""
    import uvicorn
    from vllm import envs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import NoSignalServer

    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    await init_app_state(client, app.state, arguments, tasks)
    install(app, state, config.worker.max_wait_for_version_s, config.worker.key())
    settings = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level=arguments.uvicorn_log_level,
        access_log=False,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE_S,
    )
    settings.load()
    return NoSignalServer(settings)


def default_tolerance(dtype: str) -> float:
    """Largest healthy mean difference of logprobs; 16-bit engines and learners round differently."""
    return _PROBE_TOLERANCE.get(dtype.removeprefix("torch."), _PROBE_TOLERANCE_16_BIT)
