"""An instrument that plays Kafka towards the feedback pipeline: a log in memory, read in random pieces.

    Log ──► Reader (in place of a consumer) ──► Feed ──► shelves ──► Book ──► Writer (in place of a producer) ──► Log

What is sent in a transaction is in the log once that is committed, with the offsets, and not before.
"""

from types import SimpleNamespace

from kafka import TopicPartition

from schemas.feedback import Feedback
from schemas.offsets import OffsetSet
from schemas.outcomes import Outcome
from schemas.trajectories import encode
from tests.support.samples import group

PARTITIONS = 2


class Log:
    """The topics of one run.

    Args:
        config: of the run.
        dice: draws partitions, and how much is read at once.
    """

    def __init__(self, config, dice):
        self.topics, self.dice = config.topics, dice
        names = (config.topics.pending, config.topics.feedback)
        self.records = {TopicPartition(name, number): [] for name in names for number in range(PARTITIONS)}
        self.outcomes, self.contributions, self.committed = [], [], {}
        self.told_ms = []

    def append(self, item, at_s):
        """A judgement, or the group of that id."""
        is_feedback = isinstance(item, Feedback)
        topic = self.topics.feedback if is_feedback else self.topics.pending
        value, headers = (item.encode(), {}) if is_feedback else _rollout(item, self.topics.run)
        partition = self.dice.randrange(PARTITIONS)
        records = self.records[TopicPartition(topic, partition)]
        records.append(
            SimpleNamespace(
                partition=partition,
                offset=len(records),
                timestamp=int(at_s * 1000),
                value=value,
                headers=list(headers.items()),
            )
        )

    def of(self, topic):
        """All records of a topic, partition by partition."""
        return [record for partition, records in self.records.items() if partition.topic == topic for record in records]

    def outcomes_since(self, done):
        """Those that a start finds: whose records have times from that of the oldest record on that is not done."""
        lows = {partition: done[partition.topic][partition.partition].low for partition in self.records}
        left = [records[lows[each]].timestamp for each, records in self.records.items() if lows[each] < len(records)]
        since_ms = min(left, default=float("inf"))
        told = zip(self.outcomes, self.told_ms, strict=True)
        return [outcome for outcome, told_ms in told if told_ms >= since_ms]

    def done(self):
        """What is committed, as a book reads it."""
        return {
            topic: {
                number: OffsetSet.decode(*self.committed.get(TopicPartition(topic, number), (0, "")))
                for number in range(PARTITIONS)
            }
            for topic in (self.topics.pending, self.topics.feedback)
        }


def _rollout(named, run):
    return encode(group(*named, 1, run=run, reward=None, reward_parts={}, purpose="feedback", task="chat"))


class Reader:
    """A consumer that gives some of one partition at a time."""

    def __init__(self, log):
        self._log, self._positions, self._paused = log, {}, set()

    def assign(self, partitions):
        self._positions = dict.fromkeys(partitions, 0)

    def seek(self, partition, offset):
        self._positions[partition] = offset

    def pause(self, *partitions):
        self._paused |= set(partitions)

    def resume(self, *partitions):
        self._paused -= set(partitions)

    def paused(self):
        return set(self._paused)

    def poll(self, timeout_ms):
        partition = self._log.dice.choice(sorted(set(self._positions) - self._paused))
        at = self._positions[partition]
        found = self._log.records[partition][at : at + self._log.dice.randrange(12)]
        self._positions[partition] += len(found)
        return {partition: found} if found else {}

    def position(self, partition):
        return self._positions[partition]

    def partitions_for_topic(self, topic):
        return set(range(PARTITIONS))

    def end_offsets(self, partitions):
        return {partition: len(self._log.records[partition]) for partition in partitions}


class Writer:
    """A producer with transactions."""

    def __init__(self, log):
        self._log, self._sent, self._offsets = log, [], {}

    def begin_transaction(self):
        self._sent, self._offsets = [], {}

    def send(self, topic, value, key, headers, timestamp_ms):
        self._sent.append((topic, value, key, timestamp_ms))

    def send_offsets_to_transaction(self, positions, group_id):
        self._offsets = {partition: (each.offset, each.metadata) for partition, each in positions.items()}

    def commit_transaction(self):
        self._log.committed.update(self._offsets)
        for topic, value, key, timestamp_ms in self._sent:
            if topic == self._log.topics.outcomes:
                self._log.outcomes.append(Outcome.decode(value))
                self._log.told_ms.append(timestamp_ms)
            elif topic == self._log.topics.trajectories:
                self._log.contributions.append(key)
