"""An instrument that plays the learner towards a real pipeline: it takes time as one, and trains nothing.

    trajectories ──► groups of a step ──► sleep (fixed_s + token_s × tokens ÷ ranks) ──► ledger, weights, admission

It keeps the learner's rules: groups in the order of their weights, none that became too old, what was dropped is
replaced at once, admission as in ``trainers/admission.py``, what a step says is committed beside the next gradient, and
no step is made before the last one is committed. Engines that it is given take every version up when it is announced,
as a worker does whose weights take no time. Prompts have to lie in all partitions in turn, without gaps.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from schemas.admission import AdmissionFrontier
from schemas.ledger import DroppedGroup, Numerics, Settings, StartEntry, StepEntry, TrainedGroup
from schemas.trajectories import decode
from schemas.weights import WeightVersion

_POLL_MS = 100


@dataclass(frozen=True)
class Pace:
    """How long a step takes; see the module."""

    fixed_s: float
    token_s: float
    publish_s: float
    ranks: int = 1


class SimulatedLearner:
    """Does ``run``'s steps and writes what a learner writes."""

    def __init__(self, config, pace, engines=()):
        self._config, self._pace, self._learner = config, pace, config.learner
        self._engines = engines
        self._producer = KafkaProducer(**config.kafka.producer_options())
        self._consumer = KafkaConsumer(**config.kafka.consumer_options())
        topic = config.topics.trajectories
        self._consumer.assign([TopicPartition(topic, number) for number in range(config.kafka.partitions)])
        self._consumer.seek_to_beginning(*self._consumer.assignment())
        self._groups, self._dropped = [], []
        self._steps = self._released = self._admitted = 0
        self._beside = ThreadPoolExecutor(1)

    def run(self, steps, timeout_s=300.0):
        """Returns when so many steps are committed."""
        self._begin()
        deadline = time.monotonic() + timeout_s
        for _ in range(steps):
            waiting = time.monotonic()
            taken = self._wait_for_groups(deadline)
            begun = time.monotonic()
            tokens = sum(size for _, size in taken)
            time.sleep(self._pace.fixed_s + self._pace.token_s * tokens / self._pace.ranks)
            trained = time.monotonic()
            self._committing.result()
            self._record(taken, tokens, {"seconds_wait": begun - waiting, "seconds_train": trained - begun})
        self._committing.result()
        self._consumer.close()
        self._producer.close()
        self._beside.shutdown()

    def _begin(self):
        settings = Settings(max_staleness=self._learner.max_staleness, groups_per_step=self._learner.groups_per_step)
        numerics = Numerics(torch="simulated", device="simulated", threads=1, ranks=self._pace.ranks)
        self._send(self._config.topics.ledger, StartEntry(generation=1, settings=settings, numerics=numerics))
        self._committing = self._beside.submit(self._announce, 1, self._frontier())

    def _wait_for_groups(self, deadline):
        """The groups of a step with their tokens, those with the oldest weights first."""
        wanted = self._learner.groups_per_step
        while not self._is_ready():
            assert time.monotonic() < deadline, f"{len(self._groups)} of {wanted} groups in time"
            for records in self._consumer.poll(_POLL_MS).values():
                self._groups += [found for record in records for found in _read(record)]
        self._groups.sort(key=lambda found: found[0].versions[0])
        taken, self._groups = self._groups[:wanted], self._groups[wanted:]
        return taken

    def _is_ready(self):
        """Whether a step is full without what is too old, which is replaced as soon as nothing is being committed."""
        self._drop_stale()
        if self._committing.done() and self._released + self._learner.admitted_groups > self._admitted:
            self._send(self._config.topics.admission, self._frontier())
            self._producer.flush()
        return len(self._groups) >= self._learner.groups_per_step

    def _drop_stale(self):
        oldest = self._steps + 1 - self._learner.max_staleness
        stale = [group for group, _ in self._groups if group.versions[0] < oldest]
        self._groups = [found for found in self._groups if found[0].versions[0] >= oldest]
        self._dropped += [DroppedGroup(group=group.group, at=group.at, reason="stale") for group in stale]
        self._released += len(stale)

    def _record(self, taken, tokens, seconds):
        """Counts a step and begins to commit it."""
        self._steps += 1
        self._released += len(taken)
        entry = StepEntry(
            generation=1,
            step=self._steps,
            version=self._steps + 1,
            trained=tuple(group for group, _ in taken),
            dropped=tuple(self._dropped),
            metrics={"tokens": float(tokens), "seconds_publish": self._pace.publish_s, **seconds},
        )
        self._dropped = []
        self._committing = self._beside.submit(self._commit, entry, self._frontier())

    def _commit(self, entry, frontier):
        time.sleep(self._pace.publish_s)
        self._send(self._config.topics.ledger, entry)
        self._announce(entry.version, frontier)

    def _announce(self, version, frontier):
        """Weights, and admission of what the staleness allows."""
        weights = WeightVersion(version=version, step=version - 1, generation=1, manifest_sha256="0" * 64,
                                dtype="bfloat16", base_model="simulated")  # fmt: skip
        self._send(self._config.topics.weights, weights)
        self._send(self._config.topics.admission, frontier)
        self._producer.flush()
        for engine in self._engines:
            engine.set(version=version)

    def _frontier(self):
        """Of all that may be under way now."""
        self._admitted = self._released + self._learner.admitted_groups
        partitions = self._config.kafka.partitions
        frontier = {number: -(-(self._admitted - number) // partitions) for number in range(partitions)}
        return AdmissionFrontier(version=self._steps + 1, generation=1, frontier=frontier)

    def _send(self, topic, record):
        self._producer.send(topic, record.encode(), self._config.name.encode())


def _read(record):
    """The groups of a trajectories record, as a ledger names them, with all their tokens."""
    for samples in decode(record.value, dict(record.headers)):
        first = samples[0]
        versions = (min(each.weight_version_min for each in samples), max(each.weight_version_max for each in samples))
        at = (record.partition, record.offset)
        trained = TrainedGroup(
            group=first.group, at=at, attempt=first.attempt_id, samples=len(samples), versions=versions
        )
        yield trained, sum(len(each.prompt_token_ids) + len(each.response_token_ids) for each in samples)
