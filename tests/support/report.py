"""Writes a finished run of any size to the topics of a real broker, for the report to read.

It plays producers, pipeline and learner: prompts, answers of words drawn by Zipf's law with rewards that rise, steps
that train most groups, a learner that was killed half-way, dead letters, evaluations and judgements.
"""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from kafka import KafkaProducer

from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.evals import EvalResult
from schemas.identity import GroupId
from schemas.ledger import CheckpointEntry, DroppedGroup, Position, Settings, StartEntry, StepEntry, TrainedGroup
from schemas.outcomes import FeedbackFate, Outcome
from schemas.prompts import Message, Prompt, RewardSpec
from schemas.trajectories import Span, encode
from schemas.weights import WeightVersion
from tests.support.samples import group

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)
_RECORD_GROUPS = 16
_DROPPED_EVERY = 5
_SYLLABLES = ("ba", "co", "di", "fen", "gor", "hul", "ja", "ki", "lom", "ne", "pra", "qui", "ros", "sta", "tu", "vel")
_WORDS = [first + second + third for third in ("", "n", "ter") for first in _SYLLABLES for second in _SYLLABLES]


class WrittenRun:
    """A run of so many groups; ``write()`` sends it.

    Args:
        config: names the run and its broker.
        groups: prompts, all of them answered.
        size: answers of a group.
        words: of an answer in the mean; a token is a word.
        groups_per_step: that contribute.
        answers: what all samples of a group say, by its number.
    """

    def __init__(self, config, groups, *, size=4, words=40, groups_per_step=4, answers=None, seed=0):
        self.config, self.groups, self.size, self.words = config, groups, size, words
        self.answers = answers or {}
        self.per_step = groups_per_step + groups_per_step // (_DROPPED_EVERY - 1)
        self._draw = random.Random(seed)
        self._weights = [1 / (rank + 1) for rank in range(len(_WORDS))]
        self.steps = groups // self.per_step
        self.killed_after = self.steps // 2
        self._admitted = 0

    def write(self):
        self._producer = KafkaProducer(**self.config.kafka.producer_options())
        self._write_prompts()
        self._write_answers()
        self._write_learner()
        self._write_rest()
        self._producer.flush()
        self._producer.close()

    def at(self, seconds):
        return BEGAN + timedelta(seconds=seconds)

    def _send(self, topic, value, partition=0, headers=()):
        self._producer.send(topic, value, None, list(headers), partition)

    def _write_prompts(self):
        for number in range(self.groups):
            text = f"Question {number % 500}: {' '.join(self._sentence(12))}?"
            messages = (Message(role="user", content=text),)
            prompt = Prompt(prompt_id=f"q/{number}", messages=messages, reward=RewardSpec(name="exact_match"))
            self._send(self.config.topics.prompts, prompt.encode())

    def _sentence(self, words):
        return self._draw.choices(_WORDS, self._weights, k=max(1, round(self._draw.gauss(words, words / 4))))

    def _write_answers(self):
        self.places = {}
        for record, first in enumerate(range(0, self.groups, _RECORD_GROUPS)):
            numbers = range(first, min(self.groups, first + _RECORD_GROUPS))
            value, headers = encode([sample for number in numbers for sample in self._group(number)])
            self._send(self.config.topics.trajectories, value, 0, headers.items())
            self.places |= dict.fromkeys(numbers, (0, record))

    def _group(self, number):
        version = self._version(number)
        common = {"run": self.config.name, "prompt_id": f"q/{number}", "attempt_id": f"{'ab' * 16}-{number}"}
        times = {"prompt_at": self.at(number), "generated_at": self.at(number + 5 + self._draw.random())}
        samples = group(0, number, self.size, **common, **times)
        return [self._answer(sample, version, number) for sample in samples]

    def _version(self, number):
        """Of the weights after the step before the one that trains it; those after the kill are of generation 2."""
        before = number // self.per_step
        return before + 1 if before <= self.killed_after else before + 4

    def _answer(self, sample, version, number):
        words = self._sentence(self.words)
        tokens, spans = len(words), (Span(version, 0),)
        if number % 3 == 0 and tokens > 1 and version > 1:
            spans = (Span(version - 1, 0), Span(version, tokens // 2))
        reward = float(self._draw.random() < number / self.groups)
        broken = number % 50 == 7 and sample.sample_index == 0
        return replace(
            sample,
            response_token_ids=tuple(self._draw.choices(range(6, 32_000), k=tokens)),
            response_logprobs=(-0.5,) * tokens,
            loss_mask=(True,) * tokens,
            weight_version_spans=spans,
            weight_version_min=spans[0].version,
            weight_version_max=version,
            reward=None if broken else reward,
            reward_parts={},
            reward_error="reward_timeout" if broken else None,
            response_text=self.answers.get(number, " ".join(words)),
        )

    def _write_learner(self):
        settings = Settings(max_staleness=2, groups_per_step=self.per_step)
        self._announce(1, 0, 1, self.at(0))
        self._log(StartEntry(generation=1, settings=settings, at=self.at(0)))
        again = self.killed_after - 2  # of the newest checkpoint before the kill
        for step in range(1, self.killed_after + 1):
            self._step(step, 1, step + 1)
            if step == again:
                self._log(CheckpointEntry(generation=1, step=step, manifest_sha256="c" * 64, at=self._step_at(step)))
        killed_at = self._step_at(self.killed_after)
        continued = Position(generation=1, step=again)
        self._log(StartEntry(generation=2, continues=continued, settings=settings, at=killed_at + timedelta(seconds=9)))
        version = self.killed_after + 2
        self._announce(version, again, 2, killed_at + timedelta(seconds=9))
        for number, step in enumerate(range(again + 1, self.steps + 1), version + 1):
            self._step(step, 2, number)

    def _step_at(self, step):
        return self.at(step * self.per_step + 6)

    def _step(self, step, generation, version):
        at = self._step_at(step) + timedelta(seconds=10 * (generation - 1))
        numbers = range((step - 1) * self.per_step, step * self.per_step)
        trained, dropped = [], []
        for number in numbers:
            name = {"group": GroupId(0, number), "at": self.places[number]}
            if number % _DROPPED_EVERY == _DROPPED_EVERY - 1:
                dropped.append(DroppedGroup(**name, reason="zero_variance"))
            else:
                trained.append(self._trained(name, number))
        share = step / self.steps
        metrics = {"reward_mean": share, "reward_mean_trained": share, "loss": -share, "grad_norm": 1 - share / 2,
                   "kl": share / 10, "entropy": 2 - share, "learning_rate": 2e-5, "staleness_max": 1.0,
                   "staleness_mean": 0.5, "response_tokens_mean": float(self.words), "seconds_wait": 3.0,
                   "seconds_train": 1.0, "clip_fraction": 0.1}  # fmt: skip
        self._announce(version, step, generation, at)
        self._log(StepEntry(generation=generation, step=step, version=version, trained=tuple(trained),
                            dropped=tuple(dropped), metrics=metrics, at=at))  # fmt: skip

    def _trained(self, name, number):
        version = self._version(number)
        oldest = version - 1 if number % 3 == 0 and version > 1 else version
        return TrainedGroup(**name, attempt=f"{'ab' * 16}-{number}", samples=self.size, versions=(oldest, version))

    def _announce(self, version, step, generation, at):
        facts = {"manifest_sha256": f"{version:064x}", "dtype": "float32", "base_model": "tiny", "published_at": at}
        announced = WeightVersion(version=version, step=step, generation=generation, **facts)
        self._send(self.config.topics.weights, announced.encode())
        self._admitted = max(self._admitted, min(self.groups, (step + 2) * self.per_step))
        frontier = {0: self._admitted}
        admitted = AdmissionFrontier(version=version, generation=generation, frontier=frontier)
        self._send(self.config.topics.admission, admitted.encode())

    def _log(self, entry):
        self._send(self.config.topics.ledger, entry.encode())

    def _write_rest(self):
        topics = self.config.topics
        source = (topics.trajectories, 0, 10_000_000)
        letter = DeadLetter.of("learn", "bad_sha256", "the value is not the one that was written", source, b"rubbish")
        self._send(topics.dead_letters, letter.model_copy(update={"at": self.at(30)}).encode())
        for step in (0, self.killed_after, self.steps):
            version = step + 1 if step <= self.killed_after else step + 4
            result = EvalResult(version=version, version_max=version, task="q", metric="mean_reward", temperature=0,
                                value=step / self.steps, samples=64, standard_error=0.05,
                                at=self._step_at(step))  # fmt: skip
            self._send(topics.evals, result.encode())
        fates = tuple(
            FeedbackFate(at=(0, number), fate=fate) for number, fate in enumerate(("used", "used", "too_late"))
        )
        self._send(topics.outcomes, Outcome(kind="refused", feedback=fates).encode())
