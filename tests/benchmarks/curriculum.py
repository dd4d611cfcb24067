"""How many groups teach nothing, with and without the curriculum: a simulation, no model and no Kafka.

    prompts of known difficulty ──shuffled | curriculum | curriculum that knows all rates──► groups of 8 coins each
                                        ▲                                                          │
                                        └──────────────── results, 32 groups later ◄───────────────┘

    make -s bench BENCH=curriculum

A prompt's pass rate is 1 / (1 + exp(difficulty - ability)), its difficulty is drawn from a normal distribution. The
ability stays as it is, or rises by LEARNS times the mean of 4p(1-p) over the groups that each step trains. A group
whose answers are all right or all wrong has no variance and trains nothing; a step takes as many groups as it needs
to have 8 that do. Prints one JSON object, with code 1 if a figure of the smallest population misses its bar: over the
last quarter of the steps at most BAR of shuffled prompts' share of groups without variance. Takes a minute on a core.
"""

import argparse
import json
import statistics
import sys
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pipelines.curriculum.selection import Deck, Pool
from pipelines.curriculum.settings import Selection

BAR = 0.8
SAMPLES, GROUPS, IN_FLIGHT = 8, 8, 32
"""A group, a step, and what is asked and not yet answered: two steps ahead, and two admitted at staleness 1."""
POPULATIONS = {"mostly too hard": (6.0, 4.0), "evenly spread": (0.0, 5.0), "mostly too easy": (-6.0, 4.0)}
"""Mean and standard deviation of difficulties."""
LEARNS = 0.03
WAYS = ("shuffled", "curriculum", "known rates")


def main():
    options = parse()
    cells = [
        cell(options, population, size, learns)
        for size in options.sizes
        for learns in (0.0, LEARNS)
        for population in POPULATIONS
    ]
    passed = all(each["ratio"] <= BAR for each in cells if each["prompts"] == min(options.sizes))
    told = {
        "simulated": True,
        "steps": options.steps,
        "seeds": options.seeds,
        "cells": cells,
        "bar": BAR,
        "passed": passed,
    }
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 0 if passed else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 7000], help="prompts; the bar is for the fewest")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def cell(options, population, size, learns):
    """All ways for one population, as means over seeds."""
    runs = {
        way: [simulate(make(way, population, size, seed), learns, options.steps) for seed in options.seeds]
        for way in WAYS
    }
    figures = {way: {name: mean(each[name] for each in given) for name in given[0]} for way, given in runs.items()}
    ratio = round(figures["curriculum"]["last_quarter"] / figures["shuffled"]["last_quarter"], 3)
    return {"population": population, "prompts": size, "learns": bool(learns), **figures, "ratio": ratio}


def mean(values):
    return round(statistics.fmean(values), 3)


@dataclass
class Run:
    """One run as it goes."""

    way: str
    difficulties: np.ndarray
    seed: int
    ability: float = 0.0
    version: int = 0
    number: int = 0
    selection: Selection = field(default_factory=Selection)
    order: deque = field(default_factory=deque)

    def __post_init__(self):
        size = len(self.difficulties)
        self.dice = np.random.default_rng([self.seed, 1])
        self.pool = Pool("simulated", 1.0, [str(row) for row in range(size)], [b""] * size)

    def rates(self):
        return 1 / (1 + np.exp(self.difficulties - self.ability))

    @property
    def era(self):
        return self.version // self.selection.half_life

    def draw(self):
        """The next prompt; shuffled ones epoch by epoch."""
        self.number += 1
        if self.way == "shuffled":
            if not self.order:
                self.order.extend(self.dice.permutation(len(self.difficulties)))
            return self.order.popleft()
        deck = Deck([self.pool], self.selection, self.era)
        if self.way == "known rates":
            weights = self.selection.floor + (4 * self.rates() * (1 - self.rates())) ** self.selection.power
            deck._weights = [np.where(self.pool.in_flight, 0.0, weights)]
        _, row = deck.draw(self.seed, self.number)
        self.pool.in_flight[row] = True
        return row

    def answer(self, row):
        """The pass rate of a group."""
        passes = self.dice.binomial(SAMPLES, self.rates()[row])
        self.pool.in_flight[row] = False
        self.pool.learn(row, float(passes), SAMPLES, self.era)
        return passes / SAMPLES


def make(way, population, size, seed):
    """A run before its first step; all ways of a seed have the same prompts."""
    return Run(way, np.random.default_rng([seed, 0]).normal(*POPULATIONS[population], size), seed)


def simulate(run, learns, steps):
    """Shares of groups without variance, and what the steps took."""
    flying, fruitless, trained = deque(), [], set()
    while run.version < steps:
        wasted, taught = 0, []
        while len(taught) < GROUPS:
            while len(flying) < IN_FLIGHT:
                flying.append(run.draw())
            row = flying.popleft()
            rate = run.answer(row)
            if 0 < rate < 1:
                taught.append(4 * rate * (1 - rate))
                trained.add(row)
            else:
                wasted += 1
        run.version += 1
        run.ability += learns * sum(taught) / GROUPS
        fruitless.append(wasted)
    last = fruitless[-len(fruitless) // 4 :]
    return {
        "all_steps": sum(fruitless) / (sum(fruitless) + GROUPS * len(fruitless)),
        "last_quarter": sum(last) / (sum(last) + GROUPS * len(last)),
        "groups_a_step": GROUPS + sum(fruitless) / len(fruitless),
        "prompts_trained": len(trained),
        "ability": run.ability,
    }


if __name__ == "__main__":
    raise SystemExit(main())
