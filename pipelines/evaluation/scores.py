"""Answers to tasks as a table of scores with intervals.

answers ──by task──► rows ──metric, bootstrap──► Score (value, 95 %, majority) ──► TaskScore ──mean──► FamilyScore

Pure functions. In the metrics of labels and benchmarks an answer that is missing is wrong. A mean reward is over the
rewards that there are; what could not be computed takes part in nothing and is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from pydantic import BaseModel, ConfigDict

from pipelines.evaluation.ask import Answers
from pipelines.evaluation.benchmarks import BENCHMARKS, LABELS, Figure, Row, Scorecard, mean_score
from pipelines.evaluation.choices import choices_of
from pipelines.evaluation.figures import pass_at_k
from pipelines.evaluation.intervals import Replicates, interval, mean_interval, replicate
from pipelines.evaluation.questions import Questions
from schemas.evaluation import EvaluationConfig

_REWARD: Final = "mean_reward"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Score(_Part):
    """One metric. Example: accuracy 0.61, 0.55 to 0.67, of one greedy answer to each of 277 prompts."""

    metric: str
    value: float
    low: float
    """The 2.5th percentile of what other prompts of the kind would have brought: see ``intervals``."""
    high: float
    """The 97.5th."""
    majority: float | None
    """What one gets who always says the most frequent right label of these prompts; null where there are no classes."""
    samples: int
    """Answers to each prompt."""
    temperature: float
    """0 for greedy answers."""


class TaskScore(_Part):
    """One task."""

    task: str
    rows: int
    """Prompts that were asked."""
    held: int
    """How many of them had to be answered with one of their labels."""
    unanswered: int
    """Prompts without an answer."""
    null_rewards: int
    """Answers whose reward could not be computed."""
    scores: tuple[Score, ...]
    """Those of greedy answers first; none if a mean reward stands on no reward."""


class FamilyScore(_Part):
    """The mean over tasks of the mean of each one's metrics of greedy answers: the score of a benchmark."""

    family: str
    tasks: tuple[str, ...]
    value: float
    low: float
    high: float
    majority: float | None
    """Over the metrics that have one."""


@dataclass(frozen=True, slots=True)
class Found:
    """All answers to the prompts of an evaluation, in their order."""

    greedy: Sequence[Answers]
    held: bool
    """Whether the engine held the greedy ones to the labels."""
    drawn: Sequence[Answers] = ()
    """``evaluation.samples`` to each prompt; none if that is 0."""


def score(
    questions: Questions, found: Found, limits: EvaluationConfig, seed: int
) -> tuple[list[TaskScore], list[FamilyScore]]:
    """The scores of all tasks and of the families that they are of."""
    scored, kept = list[TaskScore](), dict[str, tuple[dict[str, Figure], Replicates]]()
    for task in questions.tasks:
        greedy, drawn = (
            [each for each in answers if each.prompt.task == task] for answers in (found.greedy, found.drawn)
        )
        kept[task] = _measure(_rows(task, greedy), card_of(task, greedy), f"{seed}/{task}")
        scores = [*_scores(kept[task], 1, 0.0), *_drawn_scores(drawn, limits, f"{seed}/{task}")]
        scored.append(_task_score(task, (greedy, drawn), scores, held=found.held))
    families = [_family_score(name, tasks, kept) for name, tasks in questions.families.items()]
    return scored, [family for family in families if family is not None]


def card_of(task: str, answers: Sequence[Answers]) -> Scorecard:
    """How a task is measured: as its benchmark says, by accuracy where there are labels, else by the mean reward."""
    if task in BENCHMARKS:
        return BENCHMARKS[task]
    if all(each.prompt.function is not None and each.prompt.function.name == "label" for each in answers):
        return LABELS
    return _MEAN_REWARD


def _mean(rows: Sequence[Row]) -> float:
    return fmean(row[0] for row in rows)


_MEAN_REWARD: Final = Scorecard(lambda _prompts, _texts: [], {_REWARD: _mean}, has_classes=False)


def _rows(task: str, answers: Sequence[Answers]) -> list[Row]:
    card = card_of(task, answers)
    if card is _MEAN_REWARD:
        return _means([[reward for reward in each.rewards if reward is not None] for each in answers])
    return card.read([each.prompt for each in answers], [next(iter(each.texts), "") for each in answers])


def _means(by_prompt: Sequence[Sequence[float]]) -> list[Row]:
    return [(fmean(values), None, number) for number, values in enumerate(by_prompt) if values]


def _measure(rows: Sequence[Row], card: Scorecard, seed: str) -> tuple[dict[str, Figure], Replicates]:
    return (card.figures(rows), replicate(rows, card.metrics, seed)) if rows else ({}, {})


def _scores(measured: tuple[Mapping[str, Figure], Replicates], samples: int, temperature: float) -> list[Score]:
    return [
        Score(metric=name, value=figure.value, low=low, high=high, majority=figure.majority, samples=samples,
              temperature=temperature)
        for name, figure in measured[0].items()
        for low, high in [interval(measured[1][name])]
    ]  # fmt: skip


def _drawn_scores(drawn: Sequence[Answers], limits: EvaluationConfig, seed: str) -> list[Score]:
    """The mean reward of answers that were drawn, and pass@k over the prompts with k rewards or more."""
    rewards = [[reward for reward in each.rewards if reward is not None] for each in drawn]
    passed = {
        f"pass@{k}": [[pass_at_k(len(each), sum(reward >= limits.success_reward for reward in each), k)]
                      for each in rewards if len(each) >= k]
        for k in limits.pass_at
    }  # fmt: skip
    scores = []
    for name, by_prompt in {_REWARD: rewards, **passed}.items():
        card = Scorecard(_MEAN_REWARD.read, {name: _mean}, has_classes=False)
        scores += _scores(_measure(_means(by_prompt), card, seed), limits.samples, limits.temperature)
    return scores


def _task_score(
    task: str, answers: tuple[Sequence[Answers], Sequence[Answers]], scores: Sequence[Score], *, held: bool
) -> TaskScore:
    greedy, drawn = answers
    both = (*greedy, *drawn)
    return TaskScore(
        task=task,
        rows=len(greedy),
        held=sum(bool(choices_of(each.prompt)) for each in greedy) if held else 0,
        unanswered=len({each.prompt.prompt_id for each in both if not each.rewards}),
        null_rewards=sum(each.rewards.count(None) for each in both),
        scores=tuple(scores),
    )


def _family_score(
    name: str, tasks: Sequence[str], kept: Mapping[str, tuple[dict[str, Figure], Replicates]]
) -> FamilyScore | None:
    """Null if a task of it has no figure: a mean of others would not be its score."""
    if not all(kept[task][0] for task in tasks):
        return None
    mean = mean_score({task: kept[task][0] for task in tasks})
    low, high = mean_interval([kept[task][1] for task in tasks])
    return FamilyScore(family=name, tasks=tuple(tasks), value=mean.value, low=low, high=high, majority=mean.majority)
