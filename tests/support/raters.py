"""An instrument that plays people and the feedback pipeline towards the learner, beside pipeline and workers.

prompt of offset % 6   0    ──► pending ──► a little later rated: trajectories, purpose feedback
                       1    ──► trajectories, and a correction of two of its answers
                       2    ──► trajectories, and a text that somebody gave as the right answer
                       3    ──► pending, where it stays; the second one of two expires: dead letter of stage join
                       4    ──► trajectories, and an exchange that somebody rated
                       5    ──► trajectories
"""

from dataclasses import replace

from schemas.dead_letters import DeadLetter
from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from schemas.trajectories import encode, pseudonym
from tests.support.trajectories import Rollouts

_LATER = 3
"""Answers after which people have made up their minds."""


class RatedRollouts(Rollouts):
    """See the module.

    Attributes:
        contributed: what went to trajectories and is no prompt.
        pending: prompts that went to the pending topic.
        by: who rated which group.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.contributed, self.pending, self.by, self._decided = [], [], {}, []

    def _answer(self, producer, name, prompt, announced):
        samples = self.make_group(name, prompt.token_ids, announced)
        self.answered[name] = samples
        kind = name.offset % 6
        producer.begin_transaction()
        if kind in (0, 3):
            self.pending.append(name)
            self._send(producer, self.config.topics.pending, [replace(sample, reward=None) for sample in samples])
            self._decided.append((len(self.answered) + _LATER, name))
        else:
            self._send(producer, self.config.topics.trajectories, samples)
        if kind in (1, 2, 4):
            self._contribute(producer, [self._made_of(kind, each) for each in samples[: 2 if kind == 1 else 1]])
        while self._decided and self._decided[0][0] <= len(self.answered):
            self._decide(producer, self._decided.pop(0)[1])
        producer.commit_transaction()

    def _made_of(self, kind, sample):
        """What people make of one answer: each is a group of its own."""
        place = {"prompt_id": str(sample.rollout_id), "attempt_id": "join"}
        partition = sample.prompt_partition
        if kind == 1:
            return replace(sample, prompt_partition=FEEDBACK + partition, purpose="correction", reward=-0.5, **place)
        if kind == 2:
            text = tuple(sorted(sample.response_token_ids))
            return replace(sample, prompt_partition=FEEDBACK + partition, purpose="demonstration", reward=1.0,
                           response_token_ids=text, response_logprobs=(0.0,) * len(text), **place)  # fmt: skip
        score = 1.0 if sample.prompt_offset % 12 == 4 else -1.0
        return replace(sample, prompt_partition=EXCHANGES + partition, purpose="feedback", reward=score, **place)

    def _contribute(self, producer, samples):
        self.contributed.append(samples[0].group)
        self._send(producer, self.config.topics.trajectories, samples, rated=True)

    def _decide(self, producer, name):
        samples = self.answered[name]
        if name.offset % 6 == 0:
            rated = [replace(sample, purpose="feedback", reward=1.0) for sample in samples]
            self._send(producer, self.config.topics.trajectories, rated, rated=True)
        elif name.offset % 12 == 9:
            letter = DeadLetter.of("join", "expired", "nobody judged it", (self.config.topics.prompts, *name), b"")
            producer.send(self.config.topics.dead_letters, letter.encode(), letter.key())

    def _send(self, producer, topic, samples, *, rated=False):
        group: GroupId = samples[0].group
        raters = {group: [pseudonym("ann" if group.offset % 4 else "bob")]} if rated else None
        self.by |= raters or {}
        value, headers = encode(samples, raters)
        producer.send(topic, value, group.key(), list(headers.items()), group.offset % self.config.kafka.partitions)
