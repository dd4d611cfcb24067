"""Taking a port before anything slow happens."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from schemas.errors import PortError

EVERY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - it is only compared with
"""To listen on; none that a client can connect to."""


@contextmanager
def reserve_port(section: str, host: str, port: int) -> Iterator[socket.socket]:
    """Binds a port; it refuses connections until somebody listens.

    Args:
        section: of the configuration that has ``host`` and ``port``, for the message.
        host: address of this machine.
        port: to be bound.

    Raises:
        PortError: something else has the port, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            given = f"{section}.host {host!r}, {section}.port {port}"
            raise PortError(f"{given}: {error.strerror}; stop what listens there or choose another") from error
        yield listener
