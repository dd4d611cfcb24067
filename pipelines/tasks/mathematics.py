"""``math``: problems of competitions, scored by math-verify.

math500   MATH (Hendrycks et al. 2021, arXiv:2103.03874): train is ``math_test1000`` without the problems that are in
          ``math500``, held out is ``math500`` (Lightman et al. 2023, arXiv:2305.20050)
aime24    AIME 2024: published as a test, so held out as a whole
amc23     AMC 12 of 2023: the same

Both files of MATH are parts of that data set's own test split: a model trained on this is to be measured by ``math500``
and not by all of MATH's test.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from pipelines.tasks.division import plain
from pipelines.tasks.family import Family
from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import RewardSpec

_TRAIN: Final = "math/math_test1000.jsonl"
_HELD_OUT: Final = "math/math500.jsonl"


class Math500(Task):
    """Example: ``Math500()``."""

    name = "math500"
    title = "MATH, math/math_test1000.jsonl and math/math500.jsonl"

    def files(self, split: Split) -> tuple[str, ...]:
        """The problems, for train also those that are held out of it."""
        return (_HELD_OUT,) if split == "held_out" else (_TRAIN, _HELD_OUT)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a problem."""
        held_out = [(row.problem, row.answer) for _, row in read_lines(data / _HELD_OUT, _Answered)]
        if split == "held_out":
            yield from (_row(problem, answer) for problem, answer in held_out)
            return
        kept_apart = {plain(problem) for problem, _ in held_out}
        for line, row in read_lines(data / _TRAIN, _Solved):
            if plain(row.problem) not in kept_apart:
                yield _row(row.problem, _boxed(row.solution, f"{data / _TRAIN}, line {line}"))


class _Contest(Task):
    """Problems of a contest, published as a test."""

    file: ClassVar[str]

    def files(self, split: Split) -> tuple[str, ...]:
        """None to train on."""
        return (self.file,) if split == "held_out" else ()

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a problem."""
        for name in self.files(split):
            for _, row in read_lines(data / name, _Numbered):
                yield _row(row.problem, _written(row.answer))


class Aime24(_Contest):
    """Example: ``Aime24()``."""

    name = "aime24"
    title = "AIME 2024, math/aime24.jsonl"
    file = "math/aime24.jsonl"


class Amc23(_Contest):
    """Example: ``Amc23()``."""

    name = "amc23"
    title = "AMC 2023, math/amc23.jsonl"
    file = "math/amc23.jsonl"


class Mathematics(Family):
    """Example: ``Mathematics(tasks=("math500",))``."""

    name = "math"
    title = "MATH, AIME 2024 and AMC 2023 below math/"
    members = (Math500, Aime24, Amc23)


class _Answered(Row):
    problem: str
    answer: str


class _Solved(Row):
    problem: str
    solution: str


class _Numbered(Row):
    problem: str
    answer: str | float


def ask(problem: str) -> str:
    """What the model is asked."""
    return f"{problem}\n\nSolve this step by step. End with the answer in \\boxed{{}}."


def _row(problem: str, answer: str) -> tuple[str, RewardSpec]:
    return ask(problem), RewardSpec(name="math", args={"answer": answer})


def _written(answer: str | float) -> str:
    return answer if isinstance(answer, str) else f"{answer:.12g}"


def _boxed(solution: str, where: str) -> str:
    r"""What the last ``\boxed{…}`` of a solution holds."""
    _, found, rest = solution.rpartition("\\boxed")
    if found and not rest.startswith("{"):  # TeX takes what follows as well: \boxed 2
        return rest.split("$")[0].strip()
    depth = 0
    for end, character in enumerate(rest if found else ""):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[1:end]
    raise ConfigError(f"{where}: solution {solution[-80:]!r}, expected \\boxed{{ANSWER}} in it")
