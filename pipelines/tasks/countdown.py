"""``countdown``: make a target from a few numbers, scored by the expression that is the answer's last line.

Puzzles as reasoning-gym writes them (arXiv:2505.24760). Train is ``train``, held out is ``test``. Of a row ``numbers``
and ``target`` are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.prompts import RewardSpec

_FILES: Final = {"train": "train", "held_out": "test"}


class Countdown(Task):
    """Example: ``Countdown()``."""

    name = "countdown"
    title = "countdown/train.jsonl and countdown/test.jsonl: numbers and a target"

    def files(self, split: Split) -> tuple[str, ...]:
        """One file of JSON lines."""
        return (f"countdown/{_FILES[split]}.jsonl",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a puzzle."""
        for _, row in read_lines(data / self.files(split)[0], _Puzzle):
            yield ask(row.numbers, row.target), RewardSpec(name="countdown", args=row.model_dump(mode="json"))


class _Puzzle(Row):
    numbers: tuple[int, ...]
    target: int


def ask(numbers: tuple[int, ...], target: int) -> str:
    """What the model is asked."""
    return (
        f"Numbers: {', '.join(map(str, numbers))}\n\nHow do they make {target}? Use each number once, and + - * / and "
        "brackets. Answer with the expression alone."
    )
