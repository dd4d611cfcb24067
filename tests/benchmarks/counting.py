"""A task with long answers whose reward rises step by step: count from one number to another, and stop there.

    Count from 26 to 37: 26, 27, 28,    ──►  29, 30, 31, … 37

SmolLM2-135M counts, forgets where it was, and never stops. The reward is the share of the numbers that are
right from the start, of those wanted or those given, whichever are more.
"""

import random
import re

from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

HELD_OUT = 32
_GIVEN = 3
_NUMBER = re.compile(r"\d+")


class Range(Arguments):
    """Example: ``{"first": 29, "last": 37}``."""

    first: int
    last: int


@reward("count_on")
def count_on(sample: Sample, arguments: Range) -> Reward:
    """From 0 to 1: see the module."""
    return Reward(share_right(sample.response_text, range(arguments.first, arguments.last + 1)))


def share_right(text, wanted):
    given = [int(digits[:9]) for digits in _NUMBER.findall(text)]
    right = 0
    for number, expected in zip(given, wanted, strict=False):
        if number != expected:
            break
        right += 1
    return right / max(len(given), len(wanted))


def prompts(seed):
    """All ranges of 8 to 14 numbers that begin between 2 and 80, shuffled: (to train, held out)."""
    ranges = [(first, first + count - 1) for first in range(2, 81) for count in range(8, 15)]
    random.Random(seed).shuffle(ranges)
    made = [_prompt(first, last) for first, last in ranges]
    return made[HELD_OUT:], made[:HELD_OUT]


def _prompt(first, last):
    begun = ", ".join(str(number) for number in range(first, first + _GIVEN))
    return Prompt(
        prompt_id=f"count/{first}-{last}",
        task="count",
        text=f"Count from {first} to {last}: {begun},",
        reward=RewardSpec(name="count_on", args={"first": first + _GIVEN, "last": last}),
    )
