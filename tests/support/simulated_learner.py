"""An instrument that plays the learner towards a real pipeline: it takes time as one, and trains nothing.

    trajectories ──► groups of a step ──► sleep (fixed_s + token_s × tokens ÷ ranks) ──► ledger, weights, admission

It keeps the learner's rules: groups in the order of their weights, admission as in ``trainers/admission.py``, what a
step says is committed beside the next gradient, and no step is made before the last one is committed. Prompts have to
lie in all partitions in turn, without gaps.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from schemas.admission import AdmissionFrontier
from schemas.ledger import Numerics, Settings, StartEntry, StepEntry, TrainedGroup
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

    def __init__(self, config, pace):
        self._config, self._pace, self._learner = config, pace, config.learner
        self._producer = KafkaProducer(**config.kafka.producer_options())
        self._consumer = KafkaConsumer(**config.kafka.consumer_options())
        topic = config.topics.trajectories
        self._consumer.assign([TopicPartition(topic, number) for number in range(config.kafka.partitions)])
        self._consumer.seek_to_beginning(*self._consumer.assignment())
        self._groups = []
        self._steps = 0
        self._beside = ThreadPoolExecutor(1)

    def run(self, steps, timeout_s=300.0):
        """Returns when so many steps are committed."""
        self._begin()
        deadline, committing = time.monotonic() + timeout_s, None
        for _ in range(steps):
            waiting = time.monotonic()
            taken = self._wait_for_groups(deadline)
            begun = time.monotonic()
            tokens = sum(size for _, size in taken)
            time.sleep(self._pace.fixed_s + self._pace.token_s * tokens / self._pace.ranks)
            trained = time.monotonic()
            if committing:
                committing.result()
            seconds = {"seconds_wait": begun - waiting, "seconds_train": trained - begun}
            committing = self._beside.submit(self._commit, self._entry(taken, tokens, seconds))
        committing.result()
        self._consumer.close()
        self._producer.close()
        self._beside.shutdown()

    def _begin(self):
        settings = Settings(max_staleness=self._learner.max_staleness, groups_per_step=self._learner.groups_per_step)
        numerics = Numerics(torch="simulated", device="simulated", threads=1, ranks=self._pace.ranks)
        self._send(self._config.topics.ledger, StartEntry(generation=1, settings=settings, numerics=numerics))
        self._announce()

    def _wait_for_groups(self, deadline):
        """The groups of a step with their tokens, those with the oldest weights first."""
        wanted = self._learner.groups_per_step
        while len(self._groups) < wanted:
            assert time.monotonic() < deadline, f"{len(self._groups)} of {wanted} groups in time"
            for records in self._consumer.poll(_POLL_MS).values():
                self._groups += [found for record in records for found in _read(record)]
        self._groups.sort(key=lambda found: found[0].versions[0])
        taken, self._groups = self._groups[:wanted], self._groups[wanted:]
        return taken

    def _entry(self, taken, tokens, seconds):
        self._steps += 1
        trained = tuple(group for group, _ in taken)
        metrics = {"tokens": float(tokens), "seconds_publish": self._pace.publish_s, **seconds}
        version = self._steps + 1
        return StepEntry(generation=1, step=self._steps, version=version, trained=trained, dropped=(), metrics=metrics)

    def _commit(self, entry):
        time.sleep(self._pace.publish_s)
        self._send(self._config.topics.ledger, entry)
        self._announce()

    def _announce(self):
        """Weights, and admission of what the staleness allows."""
        version, topics = self._steps + 1, self._config.topics
        weights = WeightVersion(version=version, step=self._steps, generation=1, manifest_sha256="0" * 64,
                                dtype="bfloat16", base_model="simulated")  # fmt: skip
        self._send(topics.weights, weights)
        admitted = self._steps * self._learner.groups_per_step + self._learner.admitted_groups
        partitions = self._config.kafka.partitions
        frontier = {number: -(-(admitted - number) // partitions) for number in range(partitions)}
        self._send(topics.admission, AdmissionFrontier(version=version, generation=1, frontier=frontier))
        self._producer.flush()

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
