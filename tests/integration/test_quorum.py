"""Three brokers that are one cluster: what one of them alone has, and what happens to those who used it.

Each has a host of its own, so that it can be cut off; where hosts cannot be made all are on this machine's loopback
interface. They start once for all tests, and each test finds all three at work.
"""

import signal
import threading
import time
from contextlib import ExitStack
from typing import NamedTuple
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipelines.local.broker import Broker, Quorum, Seat
from pipelines.local.ports import LOOPBACK, free_ports
from pipelines.local.supervisor import Supervisor
from pipelines.local.topics import connect, create_topics, inspect_topics
from schemas.config import KafkaConfig, RunConfig
from schemas.topics import MIN_IN_SYNC
from schemas.transactions import open_producer, transaction
from tests.support.hosts import Hosts, NoHostsError

pytestmark = pytest.mark.timeout(300)
NAMES = ("kafka-1", "kafka-2", "kafka-3")
LONGER_THAN_PATIENCE_S = 300.0
"""Of a request, and a third of a transaction's: whoever only waits for an answer hangs."""


class Cluster(NamedTuple):
    """Of three brokers, and who looks after them; ``hosts`` is null, with the reason why, if they have none."""

    bootstrap: str
    supervisor: Supervisor
    hosts: Hosts | None
    why: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    directory, why = tmp_path_factory.mktemp("quorum"), ""
    with ExitStack() as exits:
        try:
            hosts = exits.enter_context(Hosts(NAMES))
        except NoHostsError as error:
            hosts, why = None, str(error)
        quorum = Quorum(seats(hosts))
        supervisor = exits.enter_context(Supervisor(directory / "logs", directory))
        brokers = [Broker(directory / name, quorum=quorum, node=node) for node, name in enumerate(NAMES, 1)]
        specs = [broker.spec(name, restarts=9) for name, broker in zip(NAMES, brokers, strict=True)]
        supervisor.start(*(hosts.on(spec.name, spec) if hosts else spec for spec in specs))
        supervisor.wait_ready(*NAMES)
        yield Cluster(quorum.bootstrap, supervisor, hosts, why)
        for name in NAMES:
            supervisor.signal(name, signal.SIGKILL)  # nobody reads what they have, and an orderly end takes seconds


def seats(hosts):
    if hosts:
        return [Seat(hosts.address(name), 9092, 9093) for name in NAMES]
    ports = free_ports(6)
    return [Seat(LOOPBACK, *ports[index : index + 2]) for index in (0, 2, 4)]


@pytest.fixture
def config(cluster):
    """Of a run of its own, all of whose copies agree."""
    kafka = KafkaConfig(
        bootstrap=cluster.bootstrap, partitions=1, replication=3, request_timeout_s=LONGER_THAN_PATIENCE_S,
        transaction_timeout_s=3 * LONGER_THAN_PATIENCE_S,
    )  # fmt: skip
    config = RunConfig(name=f"quorum-{uuid4().hex[:12]}", kafka=kafka)
    cluster.supervisor.tick()  # sees whom the test before has killed
    cluster.supervisor.wait_ready(*NAMES)
    create_topics(config, timeout_s=60)
    wait_in_sync(config)
    return config


def test_topics_that_are_safer_than_asked_for_are_taken(config):
    assert not any(inspect_topics(config).values())
    admin = connect(config.kafka, 30)
    for copies, faults in ((3, 0), (1, 1)):
        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, config.topics.ledger, {MIN_IN_SYNC: str(copies)})]
        )
        assert len(inspect_topics(config)[config.topics.ledger]) == faults
    admin.close()


def test_a_leader_that_is_cut_off_is_left_by_writers_and_readers(cluster, config):
    if not cluster.hosts:
        pytest.skip(cluster.why)
    producer, consumer = open_producer(config.kafka, config.topics.learner_id), open_consumer(config)
    write(producer, config, b"before")
    assert read(consumer, 1) == [b"before"]

    cluster.hosts.cut(leader(config))
    try:
        thread = threading.Thread(target=write, args=(producer, config, b"cut"), daemon=True)
        thread.start()
        assert read(consumer, 1) == [b"cut"]
        thread.join(60)
        assert not thread.is_alive(), "what was read was not committed"
    finally:
        cluster.hosts.heal()
    write(producer, config, b"healed")
    assert read(consumer, 1) == [b"healed"]
    consumer.close()
    producer.close()


def test_what_was_acknowledged_by_a_leader_that_is_killed_is_on_another(cluster, config):
    producer = open_producer(config.kafka, config.topics.learner_id)
    write(producer, config, b"before")
    cluster.supervisor.signal(leader(config), signal.SIGKILL)
    write(producer, config, b"without")
    producer.close()
    consumer = open_consumer(config)
    assert read(consumer, 2) == [b"before", b"without"]
    consumer.close()


def open_consumer(config):
    """Of the ledger, from its beginning."""
    consumer, partition = KafkaConsumer(**config.kafka.consumer_options()), TopicPartition(config.topics.ledger, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    return consumer


def write(producer, config, value):
    with transaction(producer, "it has another owner"):
        producer.send(config.topics.ledger, value)


def read(consumer, count):
    """The next values; fewer if they do not come within a minute."""
    values, end = [], time.monotonic() + 60
    while len(values) < count and time.monotonic() < end:
        values += [record.value for records in consumer.poll(200).values() for record in records]
    return values


def wait_in_sync(config):
    """Returns once all copies of the ledger agree, which takes a moment after a broker was away."""
    while any(len(partition["isr_nodes"]) < len(NAMES) for partition in partitions(config)):
        time.sleep(0.2)


def leader(config):
    """The broker that leads the ledger's topic."""
    return NAMES[partitions(config)[0]["leader_id"] - 1]


def partitions(config):
    admin = connect(config.kafka, 30)
    try:
        return admin.describe_topics([config.topics.ledger])[0]["partitions"]
    finally:
        admin.close()
