"""``arith``: short word problems of elementary arithmetic, scored by the last number of the answer.

asdiv   Miao et al. 2020, arXiv:2106.15772; answers that are not one number, such as names and times, are left out
mawps   Koncel-Kedziorski et al. 2016, doi:10.18653/v1/N16-1136: AddSub, MultiArith, SingleEq and SingleOp
svamp   Patel et al. 2021, arXiv:2103.07191: published as a test, so held out as a whole

Of asdiv and mawps one story of five is held out (``division.story``). A problem is read once: its copies in a
collection are left out, and so are answers of more than two decimals, most of which are rounded ones.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from pydantic import Field

from pipelines.tasks.division import is_held_out, plain, story
from pipelines.tasks.family import Family
from pipelines.tasks.lines import Row, read_lines, read_list
from pipelines.tasks.task import Split, Task
from schemas.prompts import RewardSpec

_NUMBER: Final = re.compile(r"(-?[\d,]*\d(?:\.\d{1,2})?)(?:\.0+)?(?: *\([^()]*\))?")
"""A number with the unit that ASDiv writes behind it."""


class _Problems(Task):
    """One collection."""

    only_held_out: ClassVar[bool] = False
    collections: ClassVar[tuple[str, ...]]

    def files(self, split: Split) -> tuple[str, ...]:
        """One file a collection, for both splits."""
        return () if self.only_held_out and split == "train" else self.collections

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a problem of the split."""
        known: set[str] = set()
        for problem, answer in self.problems(data):
            number, copy = _NUMBER.fullmatch(answer), plain(problem)
            if number and copy not in known and self._is_of(problem, split):
                yield ask(problem), RewardSpec(name="last_number", args={"answer": number[1].replace(",", "")})
            known.add(copy)

    @abstractmethod
    def problems(self, data: Path) -> Iterator[tuple[str, str]]:
        """Problem and answer, in the order of the files."""

    def _is_of(self, problem: str, split: Split) -> bool:
        return self.only_held_out or is_held_out(story(problem)) == (split == "held_out")


class Asdiv(_Problems):
    """Example: ``Asdiv()``."""

    name = "asdiv"
    title = "ASDiv, arith/asdiv.jsonl"
    collections = ("arith/asdiv.jsonl",)

    def problems(self, data: Path) -> Iterator[tuple[str, str]]:
        """Body and question as one text."""
        for _, row in read_lines(data / self.collections[0], _Asdiv):
            yield f"{row.body} {row.question}", row.answer


class Mawps(_Problems):
    """Example: ``Mawps()``."""

    name = "mawps"
    title = "MAWPS, arith/mawps_{addsub,multiarith,singleeq,singleop}.jsonl"
    collections = tuple(f"arith/mawps_{name}.jsonl" for name in ("addsub", "multiarith", "singleeq", "singleop"))

    def problems(self, data: Path) -> Iterator[tuple[str, str]]:
        """The collections one after the other."""
        for name in self.collections:
            for _, row in read_lines(data / name, _Mawps):
                yield _unspaced(row.input), _written(row.target)


class Svamp(_Problems):
    """Example: ``Svamp()``."""

    name = "svamp"
    title = "SVAMP, arith/svamp.json"
    collections = ("arith/svamp.json",)
    only_held_out = True

    def problems(self, data: Path) -> Iterator[tuple[str, str]]:
        """Body and question as one text."""
        for _, row in read_list(data / self.collections[0], _Svamp):
            body = row.body.strip()
            yield f"{body}{'' if body.endswith(('.', ',', '?')) else '.'} {row.question}", _written(row.answer)


class Arith(Family):
    """Example: ``Arith(tasks=("asdiv", "mawps"))``."""

    name = "arith"
    title = "ASDiv, MAWPS and SVAMP below arith/"
    members = (Asdiv, Mawps, Svamp)


class _Asdiv(Row):
    body: str
    question: str
    answer: str


class _Mawps(Row):
    input: str
    target: float


class _Svamp(Row):
    body: str = Field(alias="Body")
    question: str = Field(alias="Question")
    answer: float = Field(alias="Answer")


def ask(problem: str) -> str:
    """What the model is asked."""
    return f"{problem}\n\nAnswer with a number."


def _unspaced(text: str) -> str:
    """Some of the rows have a blank before every stop."""
    return re.sub(r" (?=[.,?!](?: |$))", "", text.strip())


def _written(number: float) -> str:
    return str(int(number)) if number.is_integer() else str(number)
