"""The real broker: what was acknowledged outlives it, and its directory can be served again elsewhere."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.local.broker import Broker
from pipelines.local.ports import accepts
from pipelines.local.topics import create_topics, wait_for_broker
from schemas.config import KafkaConfig, RunConfig
from schemas.errors import BrokerError, PortError
from schemas.limits import MAX_TRAJECTORY_BYTES


def _produce(config, values, topic):
    from kafka import KafkaProducer

    producer = KafkaProducer(**config.kafka.producer_options())
    for value in values:
        producer.send(topic, value, partition=0).get(timeout=60)
    producer.close()


def _consume(config, topic):
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(**config.kafka.consumer_options())
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    end, values = consumer.end_offsets([partition])[partition], []
    while consumer.position(partition) < end:
        values += [record.value for records in consumer.poll(timeout_ms=500).values() for record in records]
    consumer.close()
    return values


def _config(broker, **kafka):
    return RunConfig(name="served", kafka=KafkaConfig(bootstrap=broker.bootstrap, **kafka))


def test_acknowledged_records_survive_kill_9_and_are_served_on_other_ports(tmp_path):
    first = Broker(tmp_path).start()
    config = _config(first)
    create_topics(config)
    _produce(config, [b"%d" % i for i in range(100)], config.topics.prompts)
    os.kill(first.pid, signal.SIGKILL)
    first.stop()

    with Broker(tmp_path) as second:
        assert second.port != first.port
        again = _config(second)
        assert _consume(again, again.topics.prompts) == [b"%d" % i for i in range(100)]
        _produce(again, [b"more"], again.topics.prompts)
        assert create_topics(again) == []
    assert not accepts(second.port)


def test_a_group_commit_made_before_a_restart_is_known_after_it(tmp_path):
    from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

    def consumer(config):
        return KafkaConsumer(group_id=config.topics.rollout_group, **config.kafka.consumer_options())

    with Broker(tmp_path) as first:
        config = _config(first)
        create_topics(config)
        partition = TopicPartition(config.topics.prompts, 0)
        with_group = consumer(config)
        with_group.commit({partition: OffsetAndMetadata(7, "beyond", -1)})
        with_group.close()
    with Broker(tmp_path) as second:
        with_group = consumer(_config(second))
        found = with_group.committed(partition, metadata=True)
        with_group.close()
    assert (found.offset, found.metadata) == (7, "beyond")


def test_the_largest_trajectories_record_passes(run_config):
    value = os.urandom(MAX_TRAJECTORY_BYTES - 1024)
    _produce(run_config, [value], run_config.topics.trajectories)
    assert _consume(run_config, run_config.topics.trajectories) == [value]


def test_topics_are_created_once(run_config):
    assert create_topics(run_config) == []


def test_processes_that_create_the_topics_at_once_do_not_disturb_each_other(broker):
    config = RunConfig(name="at-once", kafka=KafkaConfig(bootstrap=broker))
    with ThreadPoolExecutor(4) as pool:
        created = [name for names in pool.map(lambda _: create_topics(config), range(4)) for name in names]
    assert sorted(created) == sorted(spec.name for spec in config.topics.specs(2))


def test_a_topic_with_other_partitions_is_refused_with_both_numbers(run_config):
    other = run_config.model_copy(update={"kafka": run_config.kafka.model_copy(update={"partitions": 3})})
    with pytest.raises(BrokerError, match=f"{run_config.topics.prompts}: 2 partitions, expected 3"):
        create_topics(other)


def test_a_topic_with_other_settings_is_refused_with_both_values(broker):
    from kafka import KafkaAdminClient

    config = RunConfig(name="wrong-settings", kafka=KafkaConfig(bootstrap=broker))
    admin = KafkaAdminClient(bootstrap_servers=broker)
    ledger = {"num_partitions": 1, "replication_factor": 1, "configs": {"retention.ms": "1000"}}
    admin.create_topics({config.topics.ledger: ledger})
    admin.close()
    with pytest.raises(BrokerError, match=r"wrong-settings\.ledger: retention\.ms is 1000, expected -1"):
        create_topics(config)


@pytest.mark.timed
def test_an_unreachable_broker_is_one_clear_message_in_time():
    started = time.monotonic()
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1 cannot be reached"):
        wait_for_broker(KafkaConfig(bootstrap="127.0.0.1:1"), 1.0)
    assert time.monotonic() - started < 4


def test_a_taken_port_is_named(tmp_path, broker):
    port = int(broker.rpartition(":")[2])
    with pytest.raises(PortError, match=f"127.0.0.1:{port}"):
        Broker(tmp_path, port).start()


def test_a_directory_of_another_node_is_refused_with_the_brokers_own_words(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\nnode.id=2\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\n")
    with pytest.raises(BrokerError, match="Stored node id 2"):
        Broker(tmp_path).start()


def test_a_cluster_id_never_reads_as_a_flag():
    from pipelines.local.broker import new_cluster_id

    assert not any(new_cluster_id().startswith("-") for _ in range(2000))
