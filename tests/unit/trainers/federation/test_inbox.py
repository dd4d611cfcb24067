"""What a coordinator hears of sites after it looked away for longer than that is kept."""

import pytest
from kafka import TopicPartition
from kafka.errors import OffsetOutOfRangeError

from trainers.federation.topics import Inbox

SAID, UPDATES = TopicPartition("f.sites", 0), TopicPartition("f.updates", 0)


class Gone:
    """A consumer one of whose positions lies before the log."""

    def __init__(self, partition):
        self.partition, self.sought = partition, []

    def poll(self, timeout_ms):
        if self.partition in self.sought:
            return {}
        raise OffsetOutOfRangeError({self.partition: 7})

    def seek_to_beginning(self, partition):
        self.sought.append(partition)


@pytest.fixture
def inbox():
    def make(gone):
        made = Inbox.__new__(Inbox)
        made._said, made._updates, made._waiting, made._consumer = SAID, UPDATES, [], Gone(gone)
        return made

    return make


def test_what_sites_said_an_hour_ago_may_be_gone(inbox):
    found = inbox(SAID)
    assert found.next(0.0) is None
    assert found.next(0.0) is None
    assert found._consumer.sought == [SAID]


def test_an_update_may_not(inbox):
    with pytest.raises(OffsetOutOfRangeError):
        inbox(UPDATES).next(0.0)
