"""``countdown``: make a target from a few numbers, scored by the expression that is the answer's last line.

Puzzles as reasoning-gym writes them (arXiv:2505.24760). Train is ``train``, held out is ``test``. Of a row ``numbers``
and ``target`` are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import Field

from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.prompts import RewardSpec

_FILES: Final = {"train": "train", "held_out": "test"}
_MOST_NUMBERS: Final = 4
"""That a puzzle of the data set has."""


class Countdown(Task):
    """Example: ``Countdown(most_numbers=3, form=0.1)``."""

    name = "countdown"
    title = "countdown/train.jsonl and countdown/test.jsonl: numbers and a target"

    most_numbers: int = Field(default=_MOST_NUMBERS, ge=3)
    """Puzzles of more numbers are left out."""
    form: float = Field(default=0.0, ge=0, le=1)
    """What the reward gives while training to an expression of the numbers that misses the target; nothing to one that
    is held out."""

    @property
    def label(self) -> str:
        """One for each choice of puzzles."""
        return self.name if self.most_numbers >= _MOST_NUMBERS else f"{self.name}-{self.most_numbers}"

    def files(self, split: Split) -> tuple[str, ...]:
        """One file of JSON lines."""
        return (f"countdown/{_FILES[split]}.jsonl",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a puzzle."""
        form = {"form": self.form} if self.form and split == "train" else {}
        for _, row in read_lines(data / self.files(split)[0], _Puzzle):
            if len(row.numbers) <= self.most_numbers:
                args = row.model_dump(mode="json") | form
                yield ask(row.numbers, row.target), RewardSpec(name="countdown", args=args)


class _Puzzle(Row):
    numbers: tuple[int, ...]
    target: int


def ask(numbers: tuple[int, ...], target: int) -> str:
    """What the model is asked."""
    return (
        f"Numbers: {', '.join(map(str, numbers))}\n\nHow do they make {target}? Use each number once, and + - * / and "
        "brackets. Answer with the expression alone."
    )
