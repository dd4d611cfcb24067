"""An instrument that plays people and rollouts towards the feedback pipeline: seeded, and worse than real ones.

    draw ──► early judgements ──► rollouts and judgements in random order ──► (decided meanwhile) ──► late judgements

Of the judgements 20 % are sent twice, 10 % come once their rollout was decided, 5 % before it is written, 5 % name one
that never comes, and 2 % withdraw an earlier one.
"""

import random
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kafka import KafkaProducer

from schemas.feedback import Feedback
from schemas.identity import EXCHANGES, GroupId
from schemas.outcomes import Outcome
from schemas.trajectories import decode, encode
from tests.support.samples import group
from tests.support.trajectories import read_all
from transforms.feedback.case import Case, Rules, settle, take, wakes_at
from transforms.feedback.gate import Gate
from transforms.feedback.items import Awaited, Refused, Source

_USERS = 1000
_BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Traffic:
    """What is sent, in its order; judgements and groups of rollouts."""

    early: list[Feedback]
    mixed: list[Feedback | GroupId]
    late: list[Feedback]

    @property
    def judgements(self):
        return [each for each in (*self.early, *self.mixed, *self.late) if isinstance(each, Feedback)]


def draw(rollouts, judgements, *, seed=0, run="demo"):
    """So many rollouts, and so many judgements in all."""
    dice = random.Random(seed)
    groups = [GroupId(EXCHANGES, number) for number in range(rollouts)]
    firsts = [_judge(dice, run, number, dice.choice(groups)) for number in range(round(judgements * 0.78))]
    unknown = [_judge(dice, run, f"u{number}", GroupId(EXCHANGES + 1, number)) for number in range(judgements // 20)]
    retracted = [_retract(dice.choice(firsts), number) for number in range(judgements // 50)]
    late = dice.sample(firsts, judgements // 10)
    names = {each.feedback_id for each in late}
    early = dice.sample([each for each in firsts if each.feedback_id not in names], judgements // 20)
    names |= {each.feedback_id for each in early}
    rest = [each for each in firsts if each.feedback_id not in names]
    twice = dice.choices([*early, *rest], k=judgements - len(firsts) - len(unknown) - len(retracted))
    mixed = [*rest, *unknown, *retracted, *twice, *groups]
    dice.shuffle(mixed)
    return Traffic(early, mixed, late)


def _judge(dice, run, name, rollout):
    return Feedback(
        feedback_id=f"f-{name}",
        rollout_id=f"{run}/{rollout}/0",
        kind="thumb",
        value=dice.choice((-1.0, 1.0)),
        user=f"user-{dice.randrange(_USERS)}",
        at=_BEGIN + timedelta(milliseconds=dice.randrange(10**6)),
    )


def _retract(given, number):
    update = {"feedback_id": f"r-{number}", "kind": "retract", "value": None, "at": given.at + timedelta(seconds=1)}
    return given.model_copy(update=update)


class Sender:
    """Writes traffic to the topics of a run."""

    def __init__(self, config):
        self._run, self._topics = config.name, config.topics
        self._producer = KafkaProducer(**config.kafka.producer_options())

    def send(self, items):
        """Returns when all are acknowledged."""
        for item in items:
            if isinstance(item, Feedback):
                self._producer.send(self._topics.feedback, item.encode(), item.rollout_id.encode())
            else:
                value, headers = encode(
                    group(*item, 1, run=self._run, reward=None, reward_parts={}, purpose="feedback", task="chat")
                )
                self._producer.send(self._topics.pending, value, item.key(), headers=list(headers.items()))
        self._producer.flush()


@dataclass
class Account:
    """What the topics say became of the traffic."""

    fates: Counter
    """Judgements, by fate."""
    kinds: Counter
    """Decisions, by kind."""
    judged: Counter
    """How often each feedback record was given a fate; 1 is right."""
    joined: Counter
    """How often each group went to the learner under its own name; 1 is right."""
    contributions: Counter
    """How often each contribution lies in the trajectories topic; 1 is right."""
    announced: set
    """Contributions that the outcomes name."""
    told: dict
    """The fate of each feedback record."""

    @property
    def figures(self):
        return {"fates": dict(sorted(self.fates.items())), "kinds": dict(sorted(self.kinds.items()))}

    def once(self):
        """Everything counts once, and the trajectories are those of the outcomes."""
        counts = (self.judged, self.joined, self.contributions)
        return all(set(each.values()) <= {1} for each in counts) and set(self.contributions) == self.announced


def foresee(config):
    """What the log alone says will become of the traffic: the fate of every judgement, and how often each kind.

    The decisions are those of :mod:`transforms.feedback.case`; what is left out is all that reads, divides, keeps and
    writes, and every clock.
    """
    return foreseen(config, read_all(config, config.topics.pending), read_all(config, config.topics.feedback))


def foreseen(config, pending, feedback):
    """The same from records, each partition's in its order."""
    gate, rules = Gate(config), Rules(config.topics, config.feedback, lambda *_: None)
    cases, fates, kinds = {}, {}, Counter()
    for record in pending:
        (samples,) = decode(record.value, dict(record.headers))
        _add(cases, Awaited.of(_source(record), samples))
    for record in sorted(feedback, key=lambda each: (each.timestamp, each.partition)):
        item = gate.look(_source(record), record.value)
        if isinstance(item, Refused):
            fates[item.source.place] = item.fate
        else:
            _add(cases, item)
    for case in cases.values():
        for outcome in _outcomes(case, rules):
            fates.update({fate.at: fate.fate for fate in outcome.feedback})
            kinds[outcome.kind] += outcome.kind != "refused"
    return fates, +kinds


def _add(cases, item):
    cases[item.group] = take(cases.get(item.group, Case(item.group)), item)


def _source(record):
    return Source((record.partition, record.offset), record.offset, record.timestamp / 1000)


def _outcomes(case, rules):
    while (moment_s := wakes_at(case, rules.feedback)) < float("inf"):
        settled, case = settle(case, moment_s, rules)
        yield from (each.outcome for each in settled if each.outcome)


def account(config):
    """Reads outcomes and trajectories to their ends."""
    outcomes = [Outcome.decode(record.value) for record in read_all(config, config.topics.outcomes)]
    records = read_all(config, config.topics.trajectories)
    groups = [samples[0].group for each in records for samples in decode(each.value, dict(each.headers))]
    told = [fate for outcome in outcomes for fate in outcome.feedback]
    return Account(
        fates=Counter(fate.fate for fate in told),
        kinds=Counter(outcome.kind for outcome in outcomes if outcome.kind != "refused"),
        judged=Counter(fate.at for fate in told),
        joined=Counter(outcome.group for outcome in outcomes if outcome.kind == "joined"),
        contributions=Counter(groups),
        told={fate.at: fate.fate for fate in told},
        announced={contribution for outcome in outcomes for contribution in outcome.contributions},
    )
