"""A partition that was paused in the middle of what was fetched of it, with a real broker."""

import time

import pytest
from kafka import KafkaProducer, TopicPartition

from transforms.feedback.consumer import PausingConsumer

PAUSED, OTHER = 0, 1
RECORDS = {PAUSED: 40, OTHER: 5}
A_POLL = 10


@pytest.fixture
def consumer(run_config):
    producer = KafkaProducer(**run_config.kafka.producer_options())
    for partition, records in RECORDS.items():
        for number in range(records):
            producer.send(run_config.topics.feedback, b"%d" % number, partition=partition)
    producer.flush()
    producer.close()
    made = PausingConsumer(**run_config.kafka.consumer_options(), max_poll_records=A_POLL)
    made.assign([TopicPartition(run_config.topics.feedback, partition) for partition in RECORDS])
    made.seek_to_beginning()
    yield made
    made.close()


class Reading:
    """What a consumer has given of each partition."""

    def __init__(self, consumer):
        self._consumer, self.given = consumer, {partition: [] for partition in RECORDS}

    def until(self, condition):
        deadline = time.monotonic() + 60
        while not condition(self.given):
            assert time.monotonic() < deadline, f"nothing more comes after {self.given}"
            for partition, records in self._consumer.poll(timeout_ms=50).items():
                self.given[partition.partition] += [int(record.value) for record in records]


def test_it_is_given_to_its_end_though_nothing_else_is_fetched_meanwhile(consumer):
    reading = Reading(consumer)
    (paused,) = (each for each in consumer.assignment() if each.partition == PAUSED)
    reading.until(lambda given: len(given[PAUSED]) > 0)
    consumer.pause(paused)
    had = len(reading.given[PAUSED])
    assert had < RECORDS[PAUSED], "the rest was fetched and not given"
    reading.until(lambda given: len(given[OTHER]) == RECORDS[OTHER])
    consumer.poll(timeout_ms=200)
    assert len(reading.given[PAUSED]) == had
    consumer.resume(paused)
    reading.until(lambda given: len(given[PAUSED]) == RECORDS[PAUSED])
    assert reading.given == {partition: list(range(records)) for partition, records in RECORDS.items()}
