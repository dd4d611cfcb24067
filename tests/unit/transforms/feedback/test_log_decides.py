"""What becomes of judgements is a function of the log: however it is read, and wherever the pipeline dies."""

import random
from collections import Counter

import pytest

from schemas.config import RunConfig
from schemas.identity import GroupId
from schemas.joining import FeedbackConfig
from schemas.outcomes import Outcome
from tests.support.feedback_log import Log, Reader, Writer
from tests.support.feedback_traffic import draw, foreseen
from transforms.feedback import book as book_module
from transforms.feedback import feed as feed_module
from transforms.feedback.book import Book
from transforms.feedback.case import Rules
from transforms.feedback.feed import Feed
from transforms.feedback.items import Closed, Refused, Settled, Source
from transforms.feedback.pace import PACE
from transforms.feedback.shelf import Shelf

TIMES = {"settle_s": 4.0, "unknown_after_s": 15.0, "wait_s": 60.0, "correction_s": 30.0}
FAST, SLOW = {"user_rate_per_s": 1e6}, {"user_rate_per_s": 0.001, "user_burst": 1}


@pytest.fixture
def scene(monkeypatch, request):
    """A log with traffic of four minutes, long ago, and what its pipeline would need Kafka for."""
    seed, changes = request.param
    config = RunConfig(name="demo", feedback=FeedbackConfig(**TIMES, **changes))
    dice, at_s = random.Random(seed), 1000.0
    log, traffic = Log(config, dice), draw(60, 200, seed=seed)
    for item in (*traffic.early, *traffic.mixed, *traffic.late):
        at_s += dice.choice((0.0, 0.0, 0.001, 0.5, 2.0))
        log.append(item, at_s)
    monkeypatch.setattr(book_module, "open_producer", lambda *_: Writer(log))
    monkeypatch.setattr(book_module, "_read_offsets", lambda _: log.done())
    monkeypatch.setattr(book_module, "_read_outcomes", lambda _, done: iter(log.outcomes_since(done)))
    monkeypatch.setattr(feed_module, "PausingConsumer", lambda **_: Reader(log))
    monkeypatch.setattr(feed_module, "_MOST_RECORDS", 30)
    return config, log


class Process:
    """One life of the pipeline, without a runner: the cases of all keys on one shelf, settled now and then."""

    def __init__(self, config, log, monkeypatch):
        self._book, self._dice = Book(config), log.dice
        monkeypatch.setattr(feed_module, "book_of", lambda _: self._book)
        self._feed, self._shelf = Feed(config), Shelf(config.feedback)
        self._rules = Rules(config.topics, config.feedback, lambda *_: None)

    def step(self):
        """Reads a batch, makes some of the decisions that are due, commits; whether there may be more to do."""
        settled = []
        if self._feed.advance():
            batch = self._feed.batch
            PACE.take(len(batch.items))
            self._shelf.take(batch.items)
            settled += [batch.settled] if batch.settled else []
        if self._dice.random() < 0.5:
            settled += self._shelf.settle(self._feed.watermark_s, self._rules, self._dice.randrange(1, 30))[0]
        self._book.commit(settled)
        return self._feed.watermark_s < 1e9 or bool(self._shelf.cases)


def told(log):
    fates = [fate for outcome in log.outcomes for fate in outcome.feedback]
    assert max(Counter(fate.at for fate in fates).values()) == 1
    assert max(Counter(log.contributions).values()) == 1
    kinds = Counter(outcome.kind for outcome in log.outcomes if outcome.kind != "refused")
    return {fate.at: fate.fate for fate in fates}, kinds


def expected(config, log):
    return foreseen(config, log.of(config.topics.pending), log.of(config.topics.feedback))


@pytest.mark.parametrize("scene", [(seed, FAST) for seed in range(3)], indirect=True)
def test_a_pipeline_that_dies_again_and_again_decides_what_the_log_says(scene, monkeypatch):
    config, log = scene
    lives, more = 1, True
    while more:
        process = Process(config, log, monkeypatch)
        for _ in range(10**9 if lives > 8 else log.dice.randrange(1, 40)):
            if not (more := process.step()):
                break
        lives += more
    assert lives > 4
    assert told(log) == expected(config, log)
    assert len(told(log)[0]) == 200
    assert all(done.low == len(log.records[at]) for at, done in of_partitions(log))


def of_partitions(log):
    done = log.done()
    return [(partition, done[partition.topic][partition.partition]) for partition in log.records]


@pytest.mark.parametrize(
    "scene", [(seed, {"user_rate_per_s": 0.001, "user_burst": 1}) for seed in range(2)], indirect=True
)
def test_whose_rate_is_exceeded_does_not_depend_on_how_the_log_is_read(scene, monkeypatch):
    config, log = scene
    process = Process(config, log, monkeypatch)
    while process.step():
        pass
    assert told(log) == expected(config, log)
    assert "rate_limited" in told(log)[0].values()


@pytest.mark.parametrize("scene", [(0, FAST)], indirect=True)
def test_a_decision_that_is_made_again_after_its_group_was_closed_is_not_written_again(scene):
    config, log = scene
    book, group, source = Book(config), GroupId(0, 5), Source((0, 0), 0, 1000.0)
    for of_groups in (2, 1):  # first the record has another group that is open
        settled = [
            Settled(Outcome(kind="expired", group=group, pending=(source.place,))),
            Settled(closed=(Closed(group, source, of_groups),)),
        ]
        book.commit(settled)
        book.commit(settled[:1])
    assert [outcome.kind for outcome in log.outcomes] == ["expired"]


@pytest.mark.parametrize("scene", [(0, FAST)], indirect=True)
def test_however_many_are_refused_at_once_no_outcome_is_larger_than_a_broker_takes(scene):
    config, log = scene
    refused = tuple(Refused(Source((0, at), at, 1000.0), "rate_limited", "\x01" * 256) for at in range(1200))
    Book(config).commit([Settled(refused=refused)])
    assert [fate.at[1] for outcome in log.outcomes for fate in outcome.feedback] == list(range(1200))
    assert max(len(outcome.encode()) for outcome in log.outcomes) < 1_000_000


@pytest.mark.parametrize("scene", [(0, FAST)], indirect=True)
def test_a_pending_record_that_cannot_be_read_is_done_for_the_next_start_too(scene):
    config, log = scene
    book = Book(config)
    for at in (3, 5, 7):
        book.commit([Settled(passed=(Source((0, at), at, 1000.0),))])
    assert [at in log.done()[config.topics.pending][0] for at in (3, 4, 5, 7)] == [True, False, True, True]
