"""A runner on another machine, found at this machine's localhost. 127.0.0.2 plays the other machine."""

import socket
import threading

import pytest

from pipelines.beam_worker.relay import Relay, Relays, elsewhere
from pipelines.local.ports import accepts, free_ports

OTHER = "127.0.0.2"


@pytest.mark.parametrize(
    ("control", "peer", "way"),
    [
        ("localhost:8073", "ipv4:192.0.2.7:41234", ("192.0.2.7", 8073)),
        ("127.0.0.1:8073", "ipv4:192.0.2.7:41234", ("192.0.2.7", 8073)),
        ("localhost:8073", "ipv6:%5B2001:db8::7%5D:41234", ("2001:db8::7", 8073)),
        ("localhost:8073", "ipv4:127.0.0.1:41234", None),
        ("localhost:8073", "ipv6:%5B::1%5D:41234", None),
        ("localhost:8073", "unix:/run/pool", None),
        ("flink:8073", "ipv4:192.0.2.7:41234", None),
        ("192.0.2.9:8073", "ipv4:192.0.2.7:41234", None),
    ],
)
def test_a_runner_is_elsewhere_if_it_calls_itself_localhost_from_there(control, peer, way):
    assert elsewhere(control, peer) == way


@pytest.fixture
def runner():
    """On the other machine: says everything back until the other end has no more. Its address and port."""
    (port,) = free_ports(1)
    with socket.create_server((OTHER, port)) as server:
        threading.Thread(target=say_back, args=(server,), daemon=True).start()
        yield OTHER, port


def say_back(server):
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            while piece := client.recv(1 << 16):
                client.sendall(piece)


def test_what_is_said_here_is_answered_there_whole(runner):
    relay, text = Relay(runner), bytes(range(256)) * 20_000
    with socket.create_connection(("127.0.0.1", runner[1]), timeout=60) as client:
        sender = threading.Thread(target=send_all, args=(client, text))
        sender.start()
        heard = b"".join(iter(lambda: client.recv(1 << 16), b""))
        sender.join()
    assert heard == text
    relay.close()


def send_all(client, text):
    client.sendall(text)
    client.shutdown(socket.SHUT_WR)


def test_nobody_waits_for_a_runner_that_is_not_there():
    (port,) = free_ports(1)
    relay = Relay((OTHER, port))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        assert client.recv(1) == b""
    relay.close()


def test_a_relay_lives_as_long_as_one_of_its_workers(runner):
    relays, control = Relays(), f"localhost:{runner[1]}"
    for _ in range(2):
        assert relays.open(control, "ipv4:192.0.2.7:41234") == ("192.0.2.7", runner[1])
    assert accepts(runner[1])
    relays.close(("192.0.2.7", runner[1]))
    assert accepts(runner[1])
    relays.close(("192.0.2.7", runner[1]))
    assert not accepts(runner[1])


def test_two_runners_of_one_port_are_one_too_many(runner):
    relays, control = Relays(), f"localhost:{runner[1]}"
    way = relays.open(control, "ipv4:192.0.2.7:41234")
    with pytest.raises(OSError, match="in use"):
        relays.open(control, "ipv4:192.0.2.8:41234")
    relays.close(way)
    relays.close(None)
