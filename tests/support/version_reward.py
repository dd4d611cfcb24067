"""A reward that looks at which weights answered: for tests of what evaluations make of it."""

import time

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class Table(Arguments):
    """Example: ``{"by_version": {"1": 0.2, "2": null}}``: a version without a number hangs."""

    by_version: dict[int, float | None]


@reward("by_version")
def by_version(sample: Sample, arguments: Table) -> Reward:
    """The number of the oldest version among the sample's tokens."""
    value = arguments.by_version[sample.weight_version_min]
    if value is None:
        time.sleep(3600)
    return Reward(value)
