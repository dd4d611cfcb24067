"""Three brokers on hosts of their own: one that is cut off is left for the others, by writers and by readers."""

import threading
import time

import pytest
from kafka import KafkaConsumer, TopicPartition

from pipelines.local.broker import Broker, Quorum, Seat
from pipelines.local.supervisor import Supervisor
from pipelines.local.topics import connect, create_topics
from schemas.config import KafkaConfig, RunConfig
from schemas.transactions import open_producer, transaction

pytestmark = pytest.mark.timeout(400)
NAMES = ("kafka-1", "kafka-2", "kafka-3")
LONGER_THAN_PATIENCE_S = 300.0
"""Of a request: whoever only waits for its answer hangs."""


@pytest.fixture
def hosts(make_hosts):
    return make_hosts(*NAMES)


@pytest.fixture
def config(hosts, tmp_path):
    """Of a run whose topics are on three brokers, one on each host."""
    quorum = Quorum([Seat(hosts.address(name), 9092, 9093) for name in NAMES])
    with Supervisor(tmp_path / "logs", tmp_path) as supervisor:
        for node, name in enumerate(NAMES, 1):
            spec = Broker(tmp_path / name, quorum=quorum, node=node).spec(name)
            supervisor.start(hosts.on(name, spec))
        supervisor.wait_ready(*NAMES)
        kafka = KafkaConfig(bootstrap=quorum.bootstrap, replication=3, request_timeout_s=LONGER_THAN_PATIENCE_S)
        config = RunConfig(name="cut", kafka=kafka)
        create_topics(config, timeout_s=60)
        yield config


def test_a_leader_that_is_cut_off_is_left_by_writers_and_readers(hosts, config):
    producer = open_producer(config.kafka, config.topics.learner_id)
    consumer, partition = KafkaConsumer(**config.kafka.consumer_options()), TopicPartition(config.topics.ledger, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    write(producer, config, b"before")
    assert read(consumer, 1) == [b"before"]

    hosts.cut(NAMES[leader(config) - 1])
    thread = threading.Thread(target=write, args=(producer, config, b"cut"), daemon=True)
    thread.start()
    assert read(consumer, 1) == [b"cut"]
    thread.join(60)
    assert not thread.is_alive(), "what was read was not committed"

    hosts.heal()
    write(producer, config, b"healed")
    assert read(consumer, 1) == [b"healed"]
    consumer.close()
    producer.close()


def write(producer, config, value):
    with transaction(producer, "it has another owner"):
        producer.send(config.topics.ledger, value)


def read(consumer, count):
    """The next values; fewer if they do not come within a minute."""
    values, end = [], time.monotonic() + 60
    while len(values) < count and time.monotonic() < end:
        values += [record.value for records in consumer.poll(200).values() for record in records]
    return values


def leader(config):
    """The node that leads the partition of the ledger's topic."""
    admin = connect(config.kafka, 30)
    try:
        return admin.describe_topics([config.topics.ledger])[0]["partitions"][0]["leader_id"]
    finally:
        admin.close()
