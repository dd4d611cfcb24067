"""Transactions on a broker that comes and goes."""

import threading

import pytest
from kafka.errors import KafkaConnectionError, KafkaError
from kafka.net.compat import KafkaNetClient

from pipelines.local.topics import create_topics
from schemas.transactions import is_fencing, open_producer


@pytest.fixture
def config(run_config):
    create_topics(run_config)
    return run_config


def transact(producer, config):
    producer.begin_transaction()
    producer.send(config.topics.ledger, b"{}")
    producer.commit_transaction()


def test_a_transaction_ends_although_its_coordinator_could_not_be_reached_at_first(config, monkeypatch):
    await_ready, refused = KafkaNetClient.await_ready, []

    def refuse_twice(self, *arguments, **named):
        if armed.is_set() and len(refused) < 2:
            refused.append(arguments)
            raise KafkaConnectionError("111 ECONNREFUSED")
        return await_ready(self, *arguments, **named)

    armed = threading.Event()
    monkeypatch.setattr(KafkaNetClient, "await_ready", refuse_twice)
    producer = open_producer(config.kafka, config.topics.learner_id)
    armed.set()
    thread = threading.Thread(target=transact, args=(producer, config), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the transaction hangs"
    assert len(refused) == 2
    producer.close()


def test_the_newer_of_two_producers_fences_the_older(config):
    older = open_producer(config.kafka, config.topics.learner_id)
    newer = open_producer(config.kafka, config.topics.learner_id)
    with pytest.raises(KafkaError) as raised:
        transact(older, config)
    assert is_fencing(raised.value)
    transact(newer, config)
    older.close(timeout=1)
    newer.close()
