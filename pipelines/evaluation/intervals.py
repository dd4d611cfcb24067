"""How uncertain a figure is that was measured on some prompts, and not on all there could be.

rows by unit ──drawn anew, with replacement, as many──► metric, again and again ──► middle 95 % of the values

The percentile bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13): one way for every
metric, a mean, an F1 or a correlation. It tells what other prompts of the same kind could have brought, not what
another run of the training would; where all rows are alike, as when every answer is right, it has no width.

Pure functions.
"""

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from statistics import fmean, quantiles
from typing import Final

from pipelines.evaluation.benchmarks import Row

DRAWS: Final = 1000
"""Of a bell curve the ends then vary from seed to seed by a fiftieth of the width (one standard deviation)."""
_FORTIETHS: Final = 40
"""The first and the last of them are 2.5 % and 97.5 %."""

Replicates = dict[str, list[float]]
"""The values of each metric, one for each draw."""


def replicate(
    rows: Sequence[Row], metrics: Mapping[str, Callable[[Sequence[Row]], float]], seed: str, draws: int = DRAWS
) -> Replicates:
    """Every metric on rows drawn anew.

    Args:
        rows: at least one; those of one unit stay together.
        metrics: by name.
        seed: decides the draws.
        draws: how many.
    """
    found: Replicates = {name: [] for name in metrics}
    for drawn in _draw(_units(rows), random.Random(seed), draws):
        for name, metric in metrics.items():
            found[name].append(metric(drawn))
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of at least two values."""
    ends = quantiles(values, n=_FORTIETHS, method="inclusive")
    return ends[0], ends[-1]


def mean_interval(tasks: Sequence[Replicates]) -> tuple[float, float]:
    """Of the mean over tasks of the mean of their metrics; the tasks were drawn independently of each other.

    Args:
        tasks: one or more, each with one metric or more, all with the same number of draws.
    """
    by_task = [[fmean(values) for values in zip(*each.values(), strict=True)] for each in tasks]
    return interval([fmean(values) for values in zip(*by_task, strict=True)])


def _units(rows: Sequence[Row]) -> list[list[Row]]:
    units: dict[Hashable, list[Row]] = {}
    for row in rows:
        units.setdefault(row[2], []).append(row)
    return list(units.values())


def _draw(units: Sequence[Sequence[Row]], source: random.Random, draws: int) -> Iterator[list[Row]]:
    """As many units as there are; one that is drawn twice is two units."""
    for _ in range(draws):
        drawn = source.choices(units, k=len(units))
        yield [(given, right, number) for number, unit in enumerate(drawn) for given, right, _ in unit]
