"""``ifeval``: instructions that a program can see followed or not, scored by the share of them that the answer follows.

Zhou et al. 2023, arXiv:2311.07911. The data set is one file; one prompt of five is held out (``division.is_held_out``).
Prompts with an instruction that cannot be checked here are left out, for an answer would be rewarded that does not
follow it; the log says how many for which instruction.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import structlog
from pydantic import model_validator

from pipelines.tasks.division import is_held_out, plain
from pipelines.tasks.lines import Row, read_lines
from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import RewardSpec
from transforms.rewards.checks import checkable, follows

_LOG = structlog.get_logger(__name__)


class Ifeval(Task):
    """Example: ``Ifeval()``."""

    name = "ifeval"
    title = "IFEval, ifeval/input_data.jsonl"

    def files(self, split: Split) -> tuple[str, ...]:  # noqa: ARG002 - both are in the one file
        """One file for both splits."""
        return ("ifeval/input_data.jsonl",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a prompt of the split, as the benchmark words it."""
        left_out: Counter[str] = Counter()
        for line, row in read_lines(file := data / self.files(split)[0], _Asked):
            if is_held_out(plain(row.prompt)) != (split == "held_out"):
                continue
            if unknown := set(row.instruction_id_list).difference(checkable()):
                left_out.update(unknown)
                continue
            given = _given(row, f"{file}, line {line}")
            yield row.prompt, RewardSpec(name="instructions", args={"instructions": given})
        if left_out:
            _LOG.warning("prompts_left_out", task=self.name, split=split, unchecked=dict(left_out))


class _Asked(Row):
    prompt: str
    instruction_id_list: tuple[str, ...]
    kwargs: tuple[dict[str, Any], ...]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.kwargs) != len(self.instruction_id_list):
            raise ValueError(f"{len(self.instruction_id_list)} instructions with {len(self.kwargs)} kwargs")
        return self


def _given(row: _Asked, where: str) -> list[dict[str, Any]]:
    """The reward's arguments; some copies of the data set write all others of an instruction as null."""
    said = [{key: value for key, value in given.items() if value is not None} for given in row.kwargs]
    try:
        for name, given in zip(row.instruction_id_list, said, strict=True):
            follows(name, "", given)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return [{"name": name, "args": given} for name, given in zip(row.instruction_id_list, said, strict=True)]
