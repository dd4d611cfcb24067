"""Free ports of this machine's loopback interface."""

import random
import socket
from pathlib import Path
from typing import Final

from schemas.errors import PortError

LOOPBACK: Final = "127.0.0.1"

_LOWEST: Final = 10_000
_USUAL_EPHEMERAL: Final = 32_768
_RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now, all different, drawn at random.

    They lie below the range that Linux gives to outgoing connections: one of those would otherwise
    take the port before its server starts.
    """
    ports = range(_LOWEST, _first_ephemeral())
    drawn = random.SystemRandom().sample(ports, len(ports))  # of the system: two processes with one seed differ
    free = (port for port in drawn if is_free(port))
    return [next(free) for _ in range(count)]


def _first_ephemeral() -> int:
    first = int(_RANGE_FILE.read_text().split()[0]) if _RANGE_FILE.exists() else _USUAL_EPHEMERAL
    return first if first > _LOWEST + 1000 else _USUAL_EPHEMERAL


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def accepts(port: int, host: str = LOOPBACK) -> bool:
    """Whether something accepts connections on the port, of this machine unless another host is named."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def is_ours(address: str) -> bool:
    """Whether an address, not a name, is one of this machine's: then it can be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def require_free(port: int, key: str) -> int:
    """The port, if it is free.

    Args:
        port: what was asked for.
        key: the configuration key or flag that asked.

    Raises:
        PortError: something else listens there.
    """
    if not is_free(port):
        raise PortError(f"{key} = {port}: something else listens on {LOOPBACK}:{port}; give another port, or end it")
    return port
