"""The pool: starts a worker when a runner asks for one, and ends it when the runner lets go of it.

Whoever reaches its port can have it run code: the pipelines that runners send are programs. So it listens on the
loopback interface unless told otherwise, beside Flink's task manager in one pod for instance. Workers find a Prism on
another machine through a relay here, see :mod:`pipelines.beam_worker.relay`.
"""

import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import grpc
import structlog
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import kill_process_gracefully
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from pipelines.beam_worker.options import PoolAddress
from pipelines.beam_worker.relay import Relays, Way
from schemas.errors import PortError

_LOG = structlog.get_logger(__name__)
_ENDS_S = 10.0
"""How long the runner's connections may take to close."""


class _Started(NamedTuple):
    """A worker, and who asked for it."""

    worker_id: str
    runner: str
    """The other end of its connection."""
    process: "subprocess.Popen[bytes]"
    way: Way | None
    """To a runner on another machine that calls itself localhost."""


class Workers(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """The workers of this machine, each a process of this Python that dies with this one."""

    def __init__(self, metrics_port: int = 0) -> None:
        self._metrics_port = metrics_port
        self._started: list[_Started] = []
        self._lock = threading.Lock()
        self._relays = Relays()

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the protocol
        """Starts one that asks a runner for work."""
        worker_id, control = request.worker_id, request.control_endpoint.url
        command = [sys.executable, "-m", "pipelines.beam_worker.worker", control, worker_id, str(self._metrics_port)]
        way = None
        try:
            way = self._relays.open(control, context.peer())
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno())
        except OSError as error:
            self._relays.close(way)
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        started = _Started(worker_id, context.peer(), process, way)
        with self._lock:
            self._started.append(started)
        _LOG.info("beam_worker_started", worker=worker_id, runner=control, pid=process.pid)
        threading.Thread(target=self._await_end, args=(started,), name=f"worker-{worker_id}", daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the protocol
        """Ends one; nothing is said of one that has ended."""
        with self._lock:
            found = self._find(request.worker_id, context.peer())
            if found is not None:
                self._started.remove(found)
        if found is not None:
            kill_process_gracefully(found.process)
        return beam_fn_api_pb2.StopWorkerResponse()

    def _find(self, worker_id: str, runner: str) -> _Started | None:
        """The oldest of that name, if it can be the runner's own: two Prisms give their workers the same names."""
        named = [each for each in self._started if each.worker_id == worker_id]
        return min(named, key=lambda each: each.runner != runner, default=None)

    def stop_all(self) -> None:
        """Ends them."""
        with self._lock:
            processes = [each.process for each in self._started]
            self._started.clear()
        for process in processes:
            kill_process_gracefully(process)

    def _await_end(self, started: _Started) -> None:
        """Leaves no zombie of one that ends by itself, as it does when its runner dies."""
        code = started.process.wait()
        self._relays.close(started.way)
        with self._lock:
            if started in self._started:
                self._started.remove(started)
        _LOG.info("beam_worker_ended", worker=started.worker_id, code=code)


def run(options: PoolAddress) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    Raises:
        PortError: something else listens there.
    """
    workers = Workers(options.metrics_port)
    server, port = _server(workers, options)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    _LOG.info("beam_worker_pool_ready", address=f"{options.host}:{port}")
    stop.wait()
    server.stop(grace=None).wait(_ENDS_S)
    workers.stop_all()
    return 0


def _server(workers: Workers, options: PoolAddress) -> tuple[Any, int]:
    pings = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]
    server = grpc.server(shared_unbounded_instance(), options=pings)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(workers, server)
    address = f"{options.host}:{options.port}"
    try:
        port = int(server.add_insecure_port(address))
    except RuntimeError as error:
        told = "it cannot be listened on, most likely because something else does; give another port, or 0 for any"
        raise PortError(f"--host {options.host} --port {options.port}: {told}") from error
    return server, port
