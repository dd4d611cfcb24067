"""``pairs``: countdown with two numbers, of our own making, after one that is solved.

    two numbers from 2 to 30 ──sum, difference, product──► three targets, three puzzles ──one pair of five──► held out

Nothing has to be computed: which operation it is shows in the target's size beside the numbers. A pair is on one side
with all its puzzles, so no rule about its numbers can be learned by heart. Puzzles whose target is one of the numbers
are left out, as that number alone would be right.
"""

import random
from itertools import combinations

from pipelines.tasks.division import is_held_out
from pipelines.tasks.task import Task
from schemas.prompts import Message, RewardSpec

NUMBERS = range(2, 31)
SHOWN = (5, 7)
"""In neither split. Their difference, as a model sums up without being shown how."""


class Pairs(Task):
    """Example: ``Pairs()``; needs no data."""

    name = "pairs"
    title = "made, not read"

    def files(self, split):
        return ()

    def rows(self, data, split):
        dice = random.Random(0)
        for low, high in combinations(NUMBERS, 2):
            numbers = dice.sample((low, high), 2)
            targets = (low + high, high - low, low * high)
            if (low, high) != SHOWN and is_held_out(f"{low} {high}") == (split == "held_out"):
                yield from (puzzle(numbers, target) for target in targets if target not in numbers)

    def _prompt(self, place, text, reward):
        asked = super()._prompt(place, text, reward)
        shown = (
            Message(role="user", content=ask(SHOWN, SHOWN[1] - SHOWN[0])),
            Message(role="assistant", content="{1} - {0}".format(*SHOWN)),
        )
        return asked.model_copy(update={"messages": (*shown, *asked.messages)})

    def _require(self, data, split):
        """Nothing."""


def puzzle(numbers, target):
    return ask(numbers, target), RewardSpec(name="countdown", args={"numbers": numbers, "target": target})


def ask(numbers, target):
    return f"Make {target} from {numbers[0]} and {numbers[1]}."
