"""Free ports."""

import socket

import pytest

from pipelines.local.ports import accepts, free_ports, is_free, require_free
from schemas.errors import PortError


def test_free_ports_differ_and_can_be_listened_on():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections linger
            server.bind(("127.0.0.1", port))


def test_free_ports_lie_below_those_of_outgoing_connections():
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first = int(file.read().split()[0])
    assert all(10_000 <= port < first for port in free_ports(50))


def test_two_processes_with_one_seed_draw_different_ports():
    import random

    drawn = []
    for _ in range(2):
        random.seed(0)
        drawn.append(free_ports(6))
    assert drawn[0] != drawn[1]


def test_a_taken_port_is_named_with_its_key():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert accepts(port)
        assert not is_free(port)
        with pytest.raises(PortError, match=f"worker.port = {port}: something else listens"):
            require_free(port, "worker.port")
    assert not accepts(port)
    assert require_free(port, "worker.port") == port
