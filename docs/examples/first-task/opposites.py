"""A task and its reward in one file: opposites of English words.

asyncflow submit opposites.py    the class below makes prompts of opposites.jsonl, which lies beside this file
rewards.modules                  names this file, and the pipeline scores answers by the function below
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.tasks.task import Split, Task
from schemas.prompts import RewardSpec
from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class Opposite(Arguments):
    """What a prompt tells the reward: ``{"opposite": "cold"}``."""

    opposite: str


@reward("opposite")
def opposite(sample: Sample, arguments: Opposite) -> Reward:
    """1 for the word alone, 0.5 for a sentence with it, else 0."""
    words = sample.response_text.lower().replace(".", "").split()
    right = arguments.opposite in words
    alone = words == [arguments.opposite]
    return Reward(0.5 * right + 0.5 * alone, {"right": float(right), "alone": float(alone)})


class Opposites(Task):
    """Every fifth row is held out."""

    name = "opposites"
    title = "opposites.jsonl: word, opposite"

    def files(self, split: Split) -> tuple[str, ...]:
        return ("opposites.jsonl",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        lines = (data / "opposites.jsonl").read_text().splitlines()
        for number, row in enumerate(map(json.loads, lines)):
            if (number % 5 == 4) == (split == "held_out"):
                answer = RewardSpec(name="opposite", args={"opposite": row["opposite"]})
                yield f"What is the opposite of {row['word']}?", answer
