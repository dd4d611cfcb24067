"""A broker whose host does not answer is left for one that does."""

import socket
from contextlib import ExitStack

import pytest

from schemas.config import KafkaConfig
from schemas.connections import CONNECT_S, GONE_AFTER_S, patient_client
from schemas.producers import connect_producer


@pytest.fixture
def silent():
    """``HOST:PORT`` of a host that answers nothing: its queue of connections is full, so Linux drops further ones."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield "{}:{}".format(*server.getsockname())


def test_a_first_broker_that_does_not_answer_does_not_take_all_the_time(silent, broker, monkeypatch):
    tried = []

    def silent_first(brokers):
        named = {f"{each.host}:{each.port}": each for each in brokers}
        tried.append(silent if not tried else broker)
        return named[tried[-1]]

    monkeypatch.setattr("kafka.net.manager.random.choice", silent_first)
    options = KafkaConfig(bootstrap=f"{silent},{broker}").producer_options()
    producer = connect_producer({**options, "socket_options": []})  # on a system that does not give up connections
    assert len(tried) >= 2
    assert tried[0] == silent
    producer.close()


def test_connections_are_given_up_when_nothing_is_acknowledged(broker):
    """What the kernel does then, tests/integration/test_quorum.py shows."""
    options = KafkaConfig(bootstrap=f"{broker},127.0.0.1:1").client_options()
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_AFTER_S) in options["socket_options"]
    client = options["kafka_client"](**options)
    assert client._manager.config["socket_connection_setup_timeout_ms"] == 1000 * CONNECT_S
    client.close()


@pytest.mark.parametrize("bootstrap", ["127.0.0.1:9092", "127.0.0.1:9092,127.0.0.1:9092"])
def test_a_single_broker_is_waited_for_as_kafka_python_does(bootstrap):
    for options in (
        KafkaConfig(bootstrap=bootstrap).consumer_options(),
        KafkaConfig(bootstrap=bootstrap).producer_options(),
    ):
        assert not {"socket_options", "kafka_client"} & options.keys()


def test_how_long_a_broker_may_take_grows_with_its_failures():
    client = patient_client(bootstrap_servers="127.0.0.1:1")
    manager, taken_s = client._manager, []
    for _ in range(5):
        taken_s.append(manager.socket_connection_setup_timeout_ms("1") / 1000)
        manager.update_backoff("1")
    client.close()
    assert taken_s == [pytest.approx(expected_s, rel=0.2001) for expected_s in (3, 3, 6, 12, 12)]
