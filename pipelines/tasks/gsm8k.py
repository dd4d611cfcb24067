"""``gsm8k``: word problems of several steps, scored by the last number of the answer.

Cobbe et al. 2021, arXiv:2110.14168. Train is ``train``, held out is ``test``, as published: a row's ``answer`` ends
with ``#### NUMBER``.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import RewardSpec

_FILES: Final = {"train": "train", "held_out": "test"}
_ANSWER: Final = re.compile(r"#### *(-?[\d,]+(?:\.\d+)?)\s*\Z")


class Gsm8k(Task):
    """Example: ``Gsm8k()``."""

    name = "gsm8k"
    title = "GSM8K, gsm8k/train.jsonl and gsm8k/test.jsonl"

    def files(self, split: Split) -> tuple[str, ...]:
        """One file of JSON lines."""
        return (f"gsm8k/{_FILES[split]}.jsonl",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a problem."""
        file = data / self.files(split)[0]
        for line, row in read_lines(file, _Problem):
            found = _ANSWER.search(row.answer)
            if not found:
                raise ConfigError(f"{file}, line {line}: answer {row.answer[-80:]!r}, expected #### NUMBER at its end")
            yield ask(row.question), RewardSpec(name="last_number", args={"answer": found[1].replace(",", "")})


class _Problem(Row):
    question: str
    answer: str


def ask(question: str) -> str:
    """What the model is asked."""
    return f"{question}\n\nSolve this step by step. End with the answer as a number."
