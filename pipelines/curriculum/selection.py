"""What is known of each prompt, and which one is drawn next. Pure: no Kafka, no clock, no state but the pools.

    a group's rewards ──Pool.learn──► passes and answers of its prompt, halved every half_life versions
                                                         │
              floor + E[4p(1-p)] ** power ◄──Pool.weights┘
                          │
    (seed, number) ──Deck.draw──► a task by its weight, and of it a prompt by these

N prompts of a pool are N entries of each array.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.curriculum.settings import Selection

PRIOR: Final = 0.5
"""Passes, and failures too, that every prompt begins with: half of each is Jeffreys' prior, by which rates near 0 and 1
are likelier than those between, as those of problems for a model are."""
Floats = npt.NDArray[np.float64]


@dataclass
class Pool:
    """The prompts of one task, with what is known of each."""

    name: str
    weight: float
    """Of the task, among the others."""
    ids: list[str]
    """Length N, all different."""
    lines: list[bytes]
    """Length N: the prompts, in the form of their topic."""
    passes: Floats = field(init=False)
    """Length N: successes, as they counted at ``era``."""
    answers: Floats = field(init=False)
    """Length N: answers with a reward, likewise."""
    era: npt.NDArray[np.int64] = field(init=False)
    """Length N: half-lives of weight versions until the newest result."""
    in_flight: npt.NDArray[np.bool_] = field(init=False)
    """Length N: drawn, and not yet answered."""
    given_up: npt.NDArray[np.bool_] = field(init=False)
    """Length N: became a dead letter."""
    draws: npt.NDArray[np.int64] = field(init=False)
    """Length N: how often it was drawn."""

    def __post_init__(self) -> None:
        size = len(self.ids)
        self.passes, self.answers = np.zeros(size), np.zeros(size)
        self.era, self.draws = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.in_flight, self.given_up = np.zeros(size, np.bool_), np.zeros(size, np.bool_)

    def learn(self, index: int, passed: float, answers: int, era: int) -> None:
        """Takes in a group's result, in whatever order results come.

        Args:
            index: of the prompt.
            passed: successes, from 0 to the number of answers.
            answers: that have a reward.
            era: half-lives of weight versions until the one that answered.
        """
        newest = max(era, int(self.era[index]))
        kept, counted = 0.5 ** (newest - int(self.era[index])), 0.5 ** (newest - era)
        self.passes[index] = self.passes[index] * kept + passed * counted
        self.answers[index] = self.answers[index] * kept + answers * counted
        self.era[index] = newest

    def weights(self, selection: Selection, era: int) -> Floats:
        """By which prompts are drawn, length N; 0 for those that cannot be now.

        Args:
            selection: how to weigh.
            era: the present one.
        """
        kept = 0.5 ** (np.maximum(era, self.era) - self.era)
        weights = selection.floor + signal(self.passes * kept, self.answers * kept) ** selection.power
        return np.where(self.in_flight | self.given_up, 0.0, weights)

    def pass_rate(self, index: int) -> float | None:
        """Mean of what was seen of a prompt, from 0 to 1; null if nothing was."""
        return float(self.passes[index] / self.answers[index]) if self.answers[index] else None


def signal(passes: Floats, answers: Floats) -> Floats:
    """How much can be expected to be learned from each prompt, from 0 to 1: the mean of 4p(1-p).

    The variance of a success whose rate is p bounds from below what an update can gain (arXiv:2504.03380) and is
    proportional to what it can be expected to gain (arXiv:2502.12272); at 0 and 1 a group has no differences and
    teaches nothing (arXiv:2503.14476). The mean is over what the rate may be, a Beta distribution of the passes and
    failures seen with :data:`PRIOR` more of each. Of rewards between the bounds, 4p(1-p) is that of the largest
    variance that their mean allows.

    Args:
        passes: successes seen, length N.
        answers: answers seen, length N.
    """
    a, b = passes + PRIOR, answers - passes + PRIOR
    return 4 * a * b / ((a + b) * (a + b + 1))


class Deck:
    """The pools as they are weighed at one moment; each draw takes its prompt out."""

    def __init__(self, pools: Sequence[Pool], selection: Selection, era: int) -> None:
        self._pools = pools
        self._weights = [pool.weights(selection, era) for pool in pools]
        self._left = [int(np.count_nonzero(weights)) for weights in self._weights]

    def draw(self, seed: int, number: int) -> tuple[int, int] | None:
        """Numbers of a pool and of a prompt of it, which depend on the arguments and the weights alone.

        A task of which nothing can be drawn is left out, and the others share its weight. Null if none can be.
        """
        dice = random.Random(f"{seed}/{number}")  # a text is hashed the same way everywhere
        pool = _choose(dice, np.array([p.weight * bool(n) for p, n in zip(self._pools, self._left, strict=True)]))
        if pool is None:
            return None
        index = _choose(dice, self._weights[pool])
        assert index is not None, "a pool is chosen only if something is left of it"
        self._weights[pool][index] = 0.0
        self._left[pool] -= 1
        return pool, index


def _choose(dice: random.Random, weights: Floats) -> int | None:
    """One of them by its weight, never one without; null if all are."""
    sums = np.cumsum(weights)
    if not sums.size or sums[-1] <= 0:
        return None
    return int(np.searchsorted(sums, dice.random() * sums[-1], side="right"))
