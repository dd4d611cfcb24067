"""A feed whose broker is slow, away, or has forgotten what was never read."""

import time
from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError, OffsetOutOfRangeError

from schemas.config import RunConfig
from schemas.errors import StateError
from tests.support.feedback import judged
from transforms.feedback import feed as module
from transforms.feedback.feed import Feed

FATED = {(0, 5)}
PENDING, FEEDBACK = TopicPartition("demo.pending", 0), TopicPartition("demo.feedback", 0)


class Consumer:
    """Gives what it is told to give, or raises it."""

    def __init__(self, **options):
        self.polls, self.ends, self.positions = [], {PENDING: 0, FEEDBACK: 0}, {PENDING: 0, FEEDBACK: 0}

    def assign(self, partitions):
        pass

    def seek(self, partition, offset):
        pass

    def paused(self):
        return set()

    def pause(self, *partitions):
        self.waiting = set(partitions)

    def resume(self, *partitions):
        pass

    def poll(self, timeout_ms):
        found = self.polls.pop(0) if self.polls else {}
        if isinstance(found, Exception):
            raise found
        return found

    def end_offsets(self, partitions):
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends

    def partitions_for_topic(self, topic):
        return {0}

    def position(self, partition):
        return self.positions[partition]


@pytest.fixture
def feed(monkeypatch):
    book = SimpleNamespace(
        starts=lambda: {PENDING: 0, FEEDBACK: 0},
        has_fate=lambda place: place in FATED,
        was_limited=lambda place: False,
        is_closed=lambda place: False,
    )
    monkeypatch.setattr(module, "book_of", lambda config: book)
    monkeypatch.setattr(module, "PausingConsumer", Consumer)
    monkeypatch.setattr(module, "_ASK_S", 0.0)
    return Feed(RunConfig(name="demo"))


def record(offset, at_s):
    value = judged(at_s, offset=offset).feedback.encode()
    return SimpleNamespace(partition=0, offset=offset, timestamp=int(at_s * 1000), value=value, headers=[])


def test_an_idle_feed_keeps_its_clock_going(feed):
    assert not feed.advance()
    assert time.time() - 5 < feed.watermark_s <= time.time() - module._IDLE_LAG_S


def test_what_is_not_read_yet_holds_the_clock_back(feed):
    consumer = feed._consumer
    consumer.ends[FEEDBACK] = 10
    consumer.polls = [{FEEDBACK: [record(0, 100.0), record(3, 101.0)]}]
    assert feed.advance()
    assert feed.watermark_s == 100.999, "there may be more of the newest millisecond"
    assert feed.batch_s == 100.0
    assert [each.source for each in feed.batch.items] == [((0, 0), 0, 100.0)]
    assert not feed.advance()
    assert feed.watermark_s == 100.999, "an empty poll may only mean that the broker is slow"
    consumer.positions[FEEDBACK] = 10
    assert feed.advance()
    assert [each.source for each in feed.batch.items] == [((0, 3), 1, 101.0)]
    assert feed.watermark_s > 1e9


def test_a_partition_that_is_not_read_yet_holds_the_others_back(feed):
    feed._consumer.ends[PENDING] = 10
    feed._consumer.polls = [{FEEDBACK: [record(0, 100.0)]}, {PENDING: [record(0, 90.0), record(1, 100.0)]}]
    assert not feed.advance()
    assert feed.watermark_s == 0.0
    assert feed.advance()
    assert feed.batch.settled.letters[0].topic == PENDING.topic
    assert not feed.batch.items
    assert feed.watermark_s == 99.999


def test_what_had_a_fate_before_counts_for_its_users_rate(feed, monkeypatch):
    seen = []
    monkeypatch.setattr(feed._gate, "remember", lambda source, value: seen.append(source.place))
    feed._consumer.polls = [{FEEDBACK: [record(4, 99.0), record(5, 100.0)]}]
    assert feed.advance()
    assert seen == [(0, 5)]
    assert [each.place for each in feed.batch.settled.judged] == [(0, 5)]
    assert [each.source.place for each in feed.batch.items] == [(0, 4)]


def test_a_broker_that_is_away_is_waited_for(feed):
    feed._consumer.polls = [KafkaConnectionError("away"), {FEEDBACK: [record(0, 100.0)]}]
    ends, feed._consumer.ends = feed._consumer.ends, KafkaConnectionError("away")
    assert not feed.advance()
    assert feed.watermark_s == 0.0
    assert not feed.advance()
    feed._consumer.ends = ends
    assert feed.advance()


def test_records_that_are_gone_are_no_reason_to_go_on(feed):
    feed._consumer.polls = [OffsetOutOfRangeError({FEEDBACK: 0})]
    with pytest.raises(StateError, match="gone"):
        feed.advance()


def test_a_reader_that_is_built_anew_finds_the_feed_where_it_was(feed, monkeypatch):
    monkeypatch.setattr(module, "_FEEDS", {})
    first = module.feed_of(RunConfig(name="demo"), None)
    first._consumer.polls = [{FEEDBACK: [record(0, 100.0)]}]
    before = first.at
    first.advance()
    assert module.feed_of(RunConfig(name="demo"), first.at) is first
    monkeypatch.setattr(Consumer, "close", lambda self: None, raising=False)
    assert module.feed_of(RunConfig(name="demo"), before) is not first, "Beam has set it back"


def test_partitions_that_were_added_are_not_passed_over(feed, monkeypatch):
    monkeypatch.setattr(Consumer, "partitions_for_topic", lambda *_: {0, 1})
    with pytest.raises(StateError, match=r"was given 1 more, .*set kafka.partitions = 2 and start the pipeline anew"):
        feed.advance()
