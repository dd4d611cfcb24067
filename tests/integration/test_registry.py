"""Workers that announce themselves on a real broker, and the pool that hears them."""

import asyncio
import time

import pytest
from kafka import KafkaProducer
from prometheus_client import CollectorRegistry

from schemas.errors import BrokerError
from schemas.workers import WorkerEntry
from tests.support.trajectories import read_all, wait_until
from transforms.generation.discovery import Discovery
from transforms.generation.follow import TopicFollower
from transforms.generation.worker import registrar as module
from transforms.generation.worker.registrar import Registrar
from transforms.generation.worker.state import Metrics, WorkerState


class Heard:
    """What the pool's workers are told."""

    def __init__(self):
        self.entries = []

    def heard(self, entry):
        self.entries.append(entry)

    @property
    def states(self):
        return [entry.state for entry in self.entries]


@pytest.fixture
def state():
    return WorkerState(Metrics(CollectorRegistry()), 2048)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_worker_is_heard_every_few_seconds_and_that_it_leaves(run_config, state, monkeypatch):
    monkeypatch.setattr(module, "_EVERY_S", 0.1)
    workers = Heard()
    discovery = Discovery(run_config, workers, asyncio.get_running_loop())
    registrar = Registrar(run_config, state)
    await registrar.leave()
    registrar.start()
    await until(lambda: len(workers.entries) >= 3)
    await registrar.leave()
    await until(lambda: "leaving" in workers.states)
    await asyncio.sleep(0.3)
    discovery.stop()
    registrar.close()
    assert workers.states[-1] == "leaving", "it is the last word"
    assert workers.states.count("leaving") == 1
    entry = workers.entries[0]
    assert (entry.url, entry.version, entry.max_num_seqs) == ("http://127.0.0.1:8000", 0, 64)
    (key,) = {record.key for record in read_all(run_config, run_config.topics.workers)}
    assert key == b"http://127.0.0.1:8000"


async def test_a_pool_hears_of_workers_that_announced_themselves_a_moment_ago_and_of_no_older_ones(run_config):
    producer = KafkaProducer(**run_config.kafka.producer_options())
    for name, age_s in (("old", 3600), ("new", 1)):
        value = WorkerEntry(url=f"http://{name}:8000", state="up", version=1, max_num_seqs=64).encode()
        at_ms = int((time.time() - age_s) * 1000)
        producer.send(run_config.topics.workers, value, timestamp_ms=at_ms).get(10)
    producer.send(run_config.topics.workers, b"not json").get(10)
    workers = Heard()
    discovery = Discovery(run_config, workers, asyncio.get_running_loop())
    value = WorkerEntry(url="http://newest:8000", state="up", version=1, max_num_seqs=64).encode()
    producer.send(run_config.topics.workers, value).get(10)
    await until(lambda: len(workers.entries) == 2)
    discovery.stop()
    assert [entry.url for entry in workers.entries] == ["http://new:8000", "http://newest:8000"]


async def test_without_discovery_nobody_is_heard(run_config, state):
    rollout = run_config.rollout.model_copy(update={"discover": False})
    workers = Heard()
    config = run_config.model_copy(update={"rollout": rollout})
    discovery = Discovery(config, workers, asyncio.get_running_loop())
    registrar = Registrar(config, state)
    registrar.start()
    await asyncio.sleep(1.0)
    await registrar.leave()
    registrar.close()
    discovery.stop()
    assert workers.entries == []


@pytest.mark.timed
async def test_a_broker_that_is_away_does_not_keep_a_worker_from_ending(run_config, state, monkeypatch):
    monkeypatch.setattr(module, "_DELIVERY_S", 0.3)
    kafka = run_config.kafka.model_copy(update={"bootstrap": "127.0.0.1:1", "client": {"bootstrap_timeout_ms": 2000}})
    registrar = Registrar(run_config.model_copy(update={"kafka": kafka}), state)
    registrar.start()
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await registrar.leave()
    assert time.monotonic() - started < 1.5
    registrar.close()


def test_a_follower_passes_over_what_kafka_has_deleted(run_config):
    from kafka import KafkaAdminClient, TopicPartition

    topic, seen = run_config.topics.workers, []
    producer = KafkaProducer(**run_config.kafka.producer_options())

    def say(name):
        entry = WorkerEntry(url=f"http://{name}:8000", state="up", version=1, max_num_seqs=64)
        producer.send(topic, entry.encode()).get(10)

    say("deleted")
    follower = TopicFollower(run_config.kafka, topic, WorkerEntry, seen.append, last_s=3600)
    admin = KafkaAdminClient(bootstrap_servers=run_config.kafka.bootstrap)
    admin.delete_records({TopicPartition(topic, 0): -1})
    admin.close()
    follower.start()
    wait_until(lambda: say("next") or seen)
    follower.stop()
    assert {entry.url for entry in seen} == {"http://next:8000"}


def test_a_topic_that_is_missing_is_named(run_config):
    with pytest.raises(BrokerError, match=r"topic none does not exist .* create it with asyncflow topics"):
        TopicFollower(run_config.kafka, "none", WorkerEntry, print)
