"""Reading a topic to its end, on an instrument in the place of the client: no broker has to die for it."""

from collections import namedtuple

import pytest

import pipelines.log as module
from pipelines.log import TopicReader
from schemas.errors import BrokerError

Partition = namedtuple("Partition", "topic partition")
FIRST = Partition("sums.ledger", 0)


class Client:
    """A consumer of a topic of ten records, three a poll, that is sent nothing after the first ``until``."""

    def __init__(self, until):
        self._until, self._at = until, 0

    def end_offsets(self, partitions):
        return dict.fromkeys(partitions, 10)

    def position(self, partition):
        return self._at

    def poll(self, timeout_ms):
        sent = range(self._at, min(self._at + 3, self._until))
        self._at += len(sent)
        return {FIRST: list(sent)} if sent else {}


def reader_of(until):
    reader = object.__new__(TopicReader)
    reader.partitions, reader._consumer = [FIRST], Client(until)
    return reader


def test_a_topic_is_read_to_its_end():
    assert list(reader_of(10).read_on()) == list(range(10))


def test_a_broker_that_dies_meanwhile_ends_the_reading_with_a_message(monkeypatch):
    monkeypatch.setattr(module, "_SILENT_S", 0.2)
    with pytest.raises(BrokerError, match=r"sums\.ledger/0 is read up to 4 of 10; see whether the broker is up"):
        list(reader_of(4).read_on())
