"""Advantages: how much better a sample is than what was to be expected of its prompt.

    rewards ──► shaped by length ──► less a baseline: the group's mean, or a running mean of its task
    differences, weights of demonstrations ──► as they are

A null reward takes no part and stays null. Groups whose known rewards are all equal were dropped before
(:func:`has_variance`, on the rewards as they came), but with running baselines, which teach of groups of one, and
where the reward came as feedback: such a group is compared with the running mean of what came for its task.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.objectives import ObjectiveConfig
from schemas.trajectories import Sample
from trainers.purposes import RATED
from trainers.shaping import shaped

EPSILON: Final = 1e-6
"""Keeps the quotient finite; far below the deviation of any rewards that differ."""

_MOST_TASKS: Final = 10_000
"""Running baselines that are kept. Which ones go depends on nothing but their names: a replay does the same."""

Rewards = Sequence[float | None]
Known = npt.NDArray[np.float64]


def has_variance(rewards: Rewards) -> bool:
    """Whether a group can teach anything: two known rewards or more that are not all equal."""
    known = [reward for reward in rewards if reward is not None]
    return len(known) >= 2 and max(known) - min(known) > EPSILON


def is_known(rewards: Rewards) -> bool:
    """Whether there is a reward that a running baseline can be compared with."""
    return any(reward is not None for reward in rewards)


def group_normalised(known: Known) -> Known:
    """(reward - mean) / (deviation + epsilon) within one group (GRPO, arXiv:2402.03300).

    The deviation is that of the population.
    """
    return mean_only(known) / (float(known.std()) + EPSILON)


def mean_only(known: Known) -> Known:
    """Reward - mean within one group (Dr. GRPO, arXiv:2503.20783)."""
    return known - float(known.mean())


def leave_one_out(known: Known) -> Known:
    """Reward - mean of the others of the group (RLOO, arXiv:2402.14740); 0 if there are none."""
    return mean_only(known) * (len(known) / max(1, len(known) - 1))


_WITHIN_GROUPS: Final[Mapping[str, Callable[[Known], Known]]] = {
    "group_normalised": group_normalised,
    "mean_only": mean_only,
    "rloo": leave_one_out,
    "batch_normalised": mean_only,
}


def within(rewards: Rewards, compute: Callable[[Known], Known]) -> list[float | None]:
    """Applies a function to the known rewards of one group."""
    known = np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
    found = iter(compute(known).tolist()) if len(known) else iter(())
    return [None if reward is None else next(found) for reward in rewards]


def by_deviation(groups: Sequence[Rewards]) -> list[list[float | None]]:
    """Divides by the deviation of all known values of a step (REINFORCE++ with baseline, arXiv:2501.03262)."""
    known = [value for group in groups for value in group if value is not None]
    scale = (float(np.std(known)) if known else 0.0) + EPSILON
    return [[None if value is None else value / scale for value in group] for group in groups]


class Advantages:
    """The advantages of a run's steps.

    Attributes:
        baselines: for each task the running mean of its shaped rewards; without ``running_baseline`` only of those
            that came as feedback.
    """

    def __init__(
        self, config: ObjectiveConfig, length_tokens: int, baselines: Mapping[str, float] | None = None
    ) -> None:
        self._config, self._length_tokens = config, length_tokens
        self._kind = config.recipe.advantage
        self.baselines = dict(baselines or {})

    def of_step(self, groups: Sequence[Sequence[Sample]]) -> list[list[float | None]]:
        """For each group the advantages of its samples; baselines are those before the step.

        With ``gae`` what is given are the shaped rewards: :mod:`trainers.returns` makes advantages of them.
        """
        rewards = self._shaped(groups)
        if self._kind == "gae":
            return rewards
        expected = self._means(groups) | self.baselines
        alone = {number for number, group in enumerate(groups) if self._is_alone(group)}
        compared = [within(r, _WITHIN_GROUPS[self._kind]) for n, r in enumerate(rewards) if n not in alone]
        found = iter(by_deviation(compared) if self._kind == "batch_normalised" else compared)
        pairs = enumerate(zip(groups, rewards, strict=True))
        return [_less(expected, *pair) if number in alone else next(found) for number, pair in pairs]

    def _is_alone(self, group: Sequence[Sample]) -> bool:
        """Whether a group teaches by something else than the differences within it."""
        if self._kind == "running_baseline" or group[0].purpose not in RATED:
            return True
        return group[0].purpose == "feedback" and not has_variance([sample.reward for sample in group])

    def learn(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Moves the running means by the groups of a step that changed the weights: a replay does the same.

        The mean of a task that is new is that of its first step. Whatever the advantage, groups that were rated move
        theirs: the next one may be alone.
        """
        keep = self._config.baseline_momentum
        for task, mean in self._means(groups).items():
            self.baselines[task] = keep * self.baselines.get(task, mean) + (1 - keep) * mean
        for task in sorted(self.baselines)[_MOST_TASKS:]:
            del self.baselines[task]

    def _shaped(self, groups: Sequence[Sequence[Sample]]) -> list[list[float | None]]:
        return [[shaped(sample, self._config, self._length_tokens) for sample in group] for group in groups]

    def _means(self, groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """For each task the mean of its known rewards, as they are shaped, of the groups that move running means."""
        purposes = RATED if self._kind == "running_baseline" else ("feedback",)
        moving = [group for group in groups if group[0].purpose in purposes]
        known: dict[str, list[float]] = {}
        for sample, reward in _pairs(moving, self._shaped(moving)):
            if reward is not None:
                known.setdefault(sample.task, []).append(reward)
        return {task: float(np.mean(values)) for task, values in known.items()}


def _less(expected: Mapping[str, float], group: Sequence[Sample], rewards: Rewards) -> list[float | None]:
    """Rewards of answers less what is expected of their task; what is none stays as it is."""
    if group[0].purpose not in RATED:
        return list(rewards)
    pairs = zip(group, rewards, strict=True)
    return [None if reward is None else reward - expected[sample.task] for sample, reward in pairs]


def _pairs(groups: Sequence[Sequence[Sample]], rewards: Sequence[Rewards]) -> Iterable[tuple[Sample, float | None]]:
    for group, of_group in zip(groups, rewards, strict=True):
        yield from zip(group, of_group, strict=True)
