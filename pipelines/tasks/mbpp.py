"""``mbpp``: short programs to be written from a sentence and a test, scored by running three tests.

Austin et al. 2021, arXiv:2108.07732. As published, tasks 601 to 974 are trained and 11 to 510 held out; 1 to 10 are the
paper's examples for prompting and 511 to 600 its validation set, and both are left alone. The paper shows all three
tests (``shown=3``); a model that is trained so can learn to answer with their values.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import Field

from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import RewardSpec

_SPLITS: Final = {"train": range(601, 975), "held_out": range(11, 511)}


class Mbpp(Task):
    """Example: ``Mbpp(shown=3)``."""

    name = "mbpp"
    title = "MBPP, mbpp/mbpp.jsonl"

    shown: int = Field(default=1, ge=1)
    """How many of the tests stand in the prompt; the first says what the function is called."""
    partial: bool = False
    """Rewards the share of the tests that pass, instead of all or nothing."""
    seconds: float = Field(default=3.0, gt=0, le=60)
    """For the tests of one answer."""

    def files(self, split: Split) -> tuple[str, ...]:  # noqa: ARG002 - both are in the one file
        """One file for both splits."""
        return ("mbpp/mbpp.jsonl",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a program of the split."""
        for line, row in read_lines(file := data / self.files(split)[0], Program):
            if row.task_id in _SPLITS[split]:
                try:
                    arguments = row.tests()
                except SyntaxError as error:
                    raise ConfigError(f"{file}, line {line}: not Python: {error}") from error
                settings = {"partial": self.partial, "seconds": self.seconds}
                yield ask(row, self.shown), RewardSpec(name="code", args={**arguments, **settings})


class Program(Row):
    """One program."""

    task_id: int
    text: str
    """What it is to do."""
    code: str
    """A right one."""
    test_setup_code: str
    test_list: tuple[str, ...] = Field(min_length=1)
    """Assertions."""

    def tests(self) -> dict[str, object]:
        """What the reward is told of the program: its tests, what they take from it, and the modules they need.

        Raises:
            SyntaxError: the right program or a test is no Python.
        """
        code, setup = ast.parse(self.code), ast.parse(_lines(self.test_setup_code))
        used = {
            node.id: None for test in self.test_list for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)
        }
        defined = _defined(code) | _defined(setup)
        modules = sorted({name for node in code.body for name in _imported(node)} & set(used))
        return {
            "tests": list(self.test_list),
            "names": sorted(defined & set(used), key=list(used).index),
            "context": "".join(f"import {name}\n" for name in modules),
            "setup": _lines(self.test_setup_code),
        }


def _lines(code: str) -> str:
    return code.replace("\r\n", "\n")


def _defined(module: ast.Module) -> set[str]:
    named = {node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = [target for node in module.body if isinstance(node, ast.Assign) for target in node.targets]
    return named | {target.id for target in assigned if isinstance(target, ast.Name)}


def _imported(node: ast.stmt) -> list[str]:
    return [alias.name for alias in node.names if not alias.asname] if isinstance(node, ast.Import) else []


def ask(row: Program, shown: int) -> str:
    """What the model is asked."""
    setup = _lines(row.test_setup_code).splitlines()
    tests = "\n".join([*setup, *row.test_list[:shown]])
    return f"{row.text.strip()} Answer with Python in one block of code. It should pass:\n\n```python\n{tests}\n```"
