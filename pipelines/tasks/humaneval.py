"""``humaneval``: functions to be completed from their signature and description, scored by running tests.

Chen et al. 2021, arXiv:2107.03374. The data set is a benchmark of 164 problems: all of it is held out.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.prompts import RewardSpec


class Humaneval(Task):
    """Example: ``Humaneval(seconds=5)``."""

    name = "humaneval"
    title = "HumanEval, humaneval/HumanEval.jsonl.gz"

    seconds: float = Field(default=3.0, gt=0, le=60)
    """For the tests of one answer."""

    def files(self, split: Split) -> tuple[str, ...]:
        """One file of JSON lines, compressed; nothing to train."""
        return () if split == "train" else ("humaneval/HumanEval.jsonl.gz",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a function; its tests are one, for they are one function in the data set."""
        for _, row in read_lines(data / self.files(split)[0], Problem):
            yield ask(row.prompt), RewardSpec(name="code", args=row.tests(self.seconds))


class Problem(Row):
    """One function."""

    prompt: str
    """Imports, helpers, its signature and docstring."""
    entry_point: str
    """Its name."""
    canonical_solution: str
    """Its body."""
    test: str
    """A function ``check(candidate)``."""

    def tests(self, seconds: float) -> dict[str, object]:
        """The arguments of the reward."""
        test = f"{self.test}\ncheck({self.entry_point})\n"
        return {"tests": [test], "names": [self.entry_point], "context": self.prompt, "seconds": seconds}


def ask(prompt: str) -> str:
    """What the model is asked."""
    asked = "Complete this Python function. Answer with all of it in one block of code."
    return f"{asked}\n\n```python\n{prompt.rstrip()}\n```"
