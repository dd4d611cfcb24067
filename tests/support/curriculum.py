"""Pools of prompts of our own, and results as the rollout pipeline writes them."""

from dataclasses import replace

from kafka import KafkaProducer

from pipelines.curriculum.selection import Pool
from schemas.admission import AdmissionFrontier
from schemas.identity import GroupId
from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import Span, encode
from tests.support.samples import group
from tests.support.trajectories import read_all


def make_pool(name="sums", size=4, weight=1.0):
    """Prompts ``sums/0``, ``sums/1`` and so on."""
    prompts = [
        Prompt(prompt_id=f"{name}/{row}", task=name, text=f"{row}+1=", reward=RewardSpec(name="last_number"))
        for row in range(size)
    ]
    return Pool(name, weight, [each.prompt_id for each in prompts], [each.encode() for each in prompts])


def make_result(place, prompt_id, rewards, *, version=1, run="demo", **changes):
    """The record of one group: value and headers."""
    spans = {"weight_version_spans": (Span(version, 0),), "weight_version_min": version, "weight_version_max": version}
    samples = group(*place, len(rewards), run=run, prompt_id=prompt_id, reward_parts={}, **spans, **changes)
    return encode([replace(sample, reward=reward) for sample, reward in zip(samples, rewards, strict=True)])


class Pipeline:
    """What rollout pipeline and learner would write, as told."""

    def __init__(self, config):
        self.config = config
        self._producer = KafkaProducer(**config.kafka.producer_options())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._producer.close()

    def prompts(self):
        """All prompts of the topic with their places, by number."""
        found = [(GroupId(r.partition, r.offset), Prompt.decode(r.value)) for r in read_all(self.config, self.topic)]
        return sorted(found, key=lambda each: number_of(each[1]))

    @property
    def topic(self):
        return self.config.topics.prompts

    def answer(self, place, prompt_id, rewards, **changes):
        value, headers = make_result(place, prompt_id, rewards, run=self.config.name, **changes)
        self.send(self.config.topics.trajectories, value, list(headers.items()), place.partition)

    def admit(self, *offsets):
        """Up to these offsets, one for each partition."""
        frontier = AdmissionFrontier(version=1, generation=1, frontier=dict(enumerate(offsets)))
        self.send(self.config.topics.admission, frontier.encode(), None, 0)

    def admit_all(self):
        """That are there."""
        offsets = dict.fromkeys(range(self.config.kafka.partitions), 0)
        offsets.update((place.partition, place.offset + 1) for place, _ in self.prompts())
        self.admit(*offsets.values())

    def send(self, topic, value, headers=None, partition=None):
        self._producer.send(topic, value, headers=headers, partition=partition).get(timeout=60)


def number_of(prompt):
    return prompt.metadata["curriculum"]["number"]
