"""The Prometheus endpoint of a process that has no other HTTP server."""

from typing import Any

from schemas.errors import PortError


def serve_metrics(section: str, host: str, port: int, registry: Any = None) -> None:
    """Serves a process's figures, from a thread of its own.

    Args:
        section: of the configuration that has ``metrics_host`` and ``metrics_port``, for the message.
        host: address of this machine.
        port: 0 for none.
        registry: of prometheus_client; null for its default.

    Raises:
        PortError: something else listens there, or the address is not this machine's.
    """
    if not port:
        return
    from prometheus_client import REGISTRY, start_http_server

    try:
        start_http_server(port, addr=host, registry=registry or REGISTRY)
    except OSError as error:
        prefix = f"{section}." if section else ""
        given = f"{prefix}metrics_host {host!r}, {prefix}metrics_port {port}"
        raise PortError(f"{given}: {error.strerror}; give a free port, or 0 for none") from error
