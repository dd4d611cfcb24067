"""How clients of several brokers hold their connections: so that one whose host is gone is given up in seconds.

A broker that ends says so. One whose host is off, or cut off, says nothing: what was sent to it waits, and by itself a
client waits for ``kafka.request_timeout_s`` with it, while the other brokers have long taken over. So the kernel is
asked to give up a connection on which nothing is acknowledged any more, and an attempt to connect ends soon.

What is only slow is kept, for its host acknowledges; unless a writer has filled the window of a broker that reads
nothing for so long, in a pause of its collector or before a disk that hangs: Linux counts that as silence, though the
host answers each probe. The writer connects and sends again then. Where one broker alone is named there may be no other
to go to, so clients wait as kafka-python does, for ``kafka.request_timeout_s``.

kafka-python is imported when a client is made.
"""

import socket
from typing import Any, Final

GONE_AFTER_S: Final = 8
"""A connection whose other end has acknowledged nothing for so long is given up."""
CONNECT_S: Final = 3.0
"""How long the first attempt to reach a broker may take, until it has also told its versions and let us log in.

After each failure there is more time, twice as much up to :data:`CONNECT_MOST_S`, give or take a fifth. Of the first
broker kafka-python counts each failure twice: 3, 6, 12 s.
"""
CONNECT_MOST_S: Final = 12.0
_IDLE_S, _PROBE_S = 3, 1
_SEVERAL: Final = 2

_GIVING_UP: Final = {
    "TCP_USER_TIMEOUT": 1000 * GONE_AFTER_S,
    "TCP_KEEPIDLE": _IDLE_S,
    "TCP_KEEPINTVL": _PROBE_S,
    "TCP_KEEPCNT": (GONE_AFTER_S - _IDLE_S) // _PROBE_S,
}
"""Those that Linux has; other systems lack some, and wait for longer."""

_CONNECTING: Final = {
    "socket_connection_setup_timeout_ms": round(1000 * CONNECT_S),
    "socket_connection_setup_timeout_max_ms": round(1000 * CONNECT_MOST_S),
}


def connection_options(brokers: int) -> dict[str, Any]:
    """Keyword arguments of a client of kafka-python that say how it holds its connections.

    Args:
        brokers: how many are named to it.
    """
    if brokers < _SEVERAL:
        return {}
    known = [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _GIVING_UP.items()
             if hasattr(socket, name)]  # fmt: skip
    return {
        "socket_options": [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known,
        ],
        "kafka_client": patient_client,
    }  # fmt: skip


def patient_client(**options: Any) -> Any:
    """A ``KafkaNetClient`` that goes from one broker to the next until one answers.

    How long it tries each it is told here, because producers and consumers do not take that setting.

    kafka-python 3.0.12 spends all the time that it has to find a first broker on the one that it happens to ask first,
    if that one's host does not answer (``KafkaConnectionManager._do_bootstrap``).
    """
    from kafka.net.compat import KafkaNetClient

    client = KafkaNetClient(**options, **_CONNECTING)
    manager = client._manager
    connect = manager.get_connection

    def connect_briefly(node_id: Any, timeout_ms: float | None = None, **named: Any) -> Any:
        longest_ms = manager.socket_connection_setup_timeout_ms(node_id)
        return connect(node_id, timeout_ms=longest_ms if timeout_ms is None else min(timeout_ms, longest_ms), **named)

    manager.get_connection = connect_briefly
    return client
