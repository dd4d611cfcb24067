"""Transactions on a broker that comes and goes."""

import os
import signal
import threading
import time
from contextlib import closing

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaConnectionError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RequestTimedOutError,
    for_code,
)
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.protocol.producer import EndTxnRequest
from structlog.testing import capture_logs

from pipelines.local.broker import Broker
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, RunConfig
from schemas.errors import BrokerError, FencedError
from schemas.transactions import open_producer, transaction


@pytest.fixture
def config(run_config):
    create_topics(run_config)
    return run_config


def transact(producer, config, *values):
    with transaction(producer, "it has another owner"):
        for value in values or (b"{}",):
            producer.send(config.topics.ledger, value if isinstance(value, bytes) else value())


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
    thread.join(60)
    assert not thread.is_alive(), "the transaction hangs"
    assert len(refused) == 2
    producer.close()


def test_the_newer_of_two_producers_fences_the_older(config):
    older = open_producer(config.kafka, config.topics.learner_id)
    newer = open_producer(config.kafka, config.topics.learner_id)
    with pytest.raises(FencedError, match="it has another owner"):
        transact(older, config)
    transact(newer, config)
    older.close(timeout=1)
    newer.close()


def test_what_failed_is_taken_back_whole_and_can_be_tried_again(config):
    producer = open_producer(config.kafka, config.topics.learner_id)
    with pytest.raises(MessageSizeTooLargeError):
        transact(producer, config, b"small", b"x" * (40 << 20))
    with pytest.raises(ZeroDivisionError):
        transact(producer, config, b"half", lambda: 1 // 0)
    transact(producer, config, b"again")
    producer.close()
    options = {"auto_offset_reset": "earliest", "consumer_timeout_ms": 2000}
    consumer = KafkaConsumer(config.topics.ledger, **config.kafka.consumer_options() | options)
    assert [record.value for record in consumer] == [b"again"]
    consumer.close()


def test_a_transaction_ends_although_nobody_answered_for_longer_than_a_request_may_take(tmp_path):
    with Broker(tmp_path) as broker:
        kafka = KafkaConfig(bootstrap=broker.bootstrap, request_timeout_s=1.0)
        config = RunConfig(name="silent", kafka=kafka)
        create_topics(config)
        producer = open_producer(kafka, config.topics.learner_id)
        transact(producer, config)
        thread = threading.Thread(target=transact, args=(producer, config), daemon=True)
        os.kill(broker.pid, signal.SIGSTOP)
        thread.start()
        time.sleep(2.5)
        assert thread.is_alive(), "it has given up, or was not held up at all"
        os.kill(broker.pid, signal.SIGCONT)
        thread.join(60)
        assert not thread.is_alive(), "the transaction hangs"
        transact(producer, config)
        producer.close()
        assert len(read(config)) == 3


def test_a_coordinator_that_stays_silent_ends_the_producer_in_words(tmp_path):
    with Broker(tmp_path) as broker:
        kafka = KafkaConfig(bootstrap=broker.bootstrap, request_timeout_s=1.0, transaction_timeout_s=4.0)
        config = RunConfig(name="mute", kafka=kafka)
        create_topics(config)
        producer = open_producer(kafka, config.topics.learner_id)
        transact(producer, config)
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            with capture_logs() as said, pytest.raises(BrokerError, match="cannot be aborted"):
                transact(producer, config)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        producer.close(timeout=5)
        told = [(each["log_level"], each["event"]) for each in said]
        assert told.count(("warning", "a broker does not answer, asking again")) >= 1
        assert told.count(("error", "a broker does not answer, giving up")) == 1
        newer = open_producer(kafka, config.topics.learner_id)
        transact(newer, config, b"newer")
        newer.close()
        assert [record.value for record in read(config)] == [b"{}", b"newer"]


def test_no_transaction_follows_one_whose_end_was_asked_for_twice(config, monkeypatch):
    send, late = KafkaNetClient.send, []

    def lose_an_end(self, node, request, **named):
        if isinstance(request, EndTxnRequest) and not late:
            late.append(request)
            return Future().failure(RequestTimedOutError("Request timed out after 1 ms"))
        return send(self, node, request, **named)

    monkeypatch.setattr(KafkaNetClient, "send", lose_an_end)
    older = open_producer(config.kafka, config.topics.learner_id)
    transact(older, config, b"first")
    with pytest.raises(BrokerError, match="this process ends"):
        transact(older, config, b"second")
    newer = open_producer(config.kafka, config.topics.learner_id)
    with transaction(newer, "it has another owner"):
        newer.send(config.topics.ledger, b"third").get(60)
        # A client of its own: no other thread drives it.
        with closing(KafkaNetClient(bootstrap_servers=config.kafka.bootstrap)) as client:
            client.get_broker_version()
            answer = client.send_and_receive(client.least_loaded_node(), late[0])
        assert for_code(answer.error_code) in (InvalidProducerEpochError, ProducerFencedError)
        assert [record.value for record in read(config)] == [b"first"], "it was committed early"
    assert [record.value for record in read(config)] == [b"first", b"third"]
    transact(newer, config)
    older.close(timeout=1)
    newer.close()


def read(config):
    """What is committed in the ledger's topic."""
    consumer = KafkaConsumer(**config.kafka.consumer_options())
    partition = TopicPartition(config.topics.ledger, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    end, records = consumer.end_offsets([partition])[partition], []
    while consumer.position(partition) < end:
        records += [record for found in consumer.poll(500).values() for record in found]
    consumer.close()
    return records
