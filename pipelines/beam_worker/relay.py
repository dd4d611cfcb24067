"""A runner that calls itself ``localhost`` and stands on another machine, found at this machine's localhost.

    worker ──► 127.0.0.1:PORT, listened on here ──► the runner's machine, as its request to the pool came from there

Prism tells every worker to look for it at ``localhost``, and repeats that in everything it sends later on, so it does
not help to tell the worker better: the port itself has to be here, too.
"""

import socket
import threading
from contextlib import suppress
from typing import Final, Self
from urllib.parse import unquote

import structlog

from pipelines.local.ports import LOOPBACK

_LOG = structlog.get_logger(__name__)
_CONNECT_S: Final = 10.0
_PIECE_BYTES: Final = 1 << 16
_LOCALS: Final = ("localhost", LOOPBACK)


def elsewhere(control: str, peer: str) -> tuple[str, int] | None:
    """Where a runner is that calls itself this machine and is not on it; None if it is found as it says.

    Args:
        control: what the runner says. Example: ``localhost:8073``.
        peer: from where it said so, as gRPC has it. Examples: ``ipv4:10.0.0.7:41234``, ``ipv6:%5B::1%5D:41234``.
    """
    host, _, port = control.rpartition(":")
    address = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")
    is_here = address.startswith("127.") or address == "::1" or not peer.startswith("ip")
    return None if host not in _LOCALS or is_here else (address, int(port))


class Relay:
    """Carries connections from a port of this machine's loopback interface to the same port of a runner's machine.

    Args:
        address: of the runner.
        port: of it, and of this machine.

    Raises:
        OSError: something else listens there.
    """

    def __init__(self, address: str, port: int) -> None:
        self._target = (address, port)
        self._server = socket.create_server((LOOPBACK, port))
        threading.Thread(target=self._accept_on, name=f"relay-{port}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes no further connections; those that are open end with the worker."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._server.close()

    def _accept_on(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._carry, args=(near,), name="relay", daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, timeout=_CONNECT_S)
        except OSError as error:
            _LOG.warning("runner_not_reached", runner="%s:%d" % self._target, error=str(error))
            near.close()
            return
        far.settimeout(None)
        with near, far:
            back = threading.Thread(target=_pump, args=(far, near), name="relay-back", daemon=True)
            back.start()
            _pump(near, far)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Until the source has no more; then the target is told so."""
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
