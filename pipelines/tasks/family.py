"""Several tasks as one, such as ``glue``, of which some can be chosen (``--args tasks=sst2,rte``).

prompts of each task, shuffled ──in turn──► one of each, then the next of each; of what has run out none
"""

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from pipelines.tasks.benchmark import Benchmark
from pipelines.tasks.glue import Cola, Mnli, Mrpc, Qnli, Rte, Sst2, Stsb, Wnli
from pipelines.tasks.superglue import Boolq, Cb, Copa, Multirc, Record, Wic, Wsc
from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import Prompt, RewardSpec
from schemas.suggestions import did_you_mean


class Family(Task):
    """Tasks whose prompts are drawn together; each keeps its own name in them."""

    members: ClassVar[tuple[type[Task], ...]]
    """All of them."""

    tasks: tuple[str, ...] = ()
    """Those that are meant, with commas between; empty for all."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _split(cls, told: object) -> object:
        return tuple(name.strip() for name in told.split(",")) if isinstance(told, str) else told

    @model_validator(mode="after")
    def _knows_them(self) -> Self:
        known = [member.name for member in self.members]
        if unknown := [name for name in self.tasks if name not in known]:
            raise ValueError(f"no task {unknown[0][:80]!r} in {self.name}; {did_you_mean(unknown[0], known)}")
        return self

    @property
    def chosen(self) -> tuple[Task, ...]:
        """The tasks that are meant, in the order of ``members``."""
        return tuple(self.make(member) for member in self.members if not self.tasks or member.name in self.tasks)

    def make(self, member: type[Task]) -> Task:
        """A task as the family was told that it is."""
        return member()

    def files(self, split: Split) -> tuple[str, ...]:
        """Those of all tasks."""
        return tuple(chain.from_iterable(task.files(split) for task in self.chosen))

    def having(self, split: Split) -> tuple[Task, ...]:
        """Those of the tasks that are meant which have the split."""
        return tuple(task for task in self.chosen if task.files(split))

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """Task after task."""
        return chain.from_iterable(task.rows(data, split) for task in self.having(split))

    def prompts(self, data: Path, split: Split) -> Iterator[Prompt]:
        """Task after task.

        Raises:
            ConfigError: a file is missing, or does not hold what it should.
        """
        self._require(data, split)
        return chain.from_iterable(task.prompts(data, split) for task in self.having(split))

    def shuffled(self, data: Path, split: Split, seed: int) -> list[Prompt]:
        """A prompt of each task in turn, each task's own in an order that depends on the seed alone."""
        self._require(data, split)
        orders = [task.shuffled(data, split, seed) for task in self.having(split)]
        return [prompt for turn in zip_longest(*orders) for prompt in turn if prompt is not None]

    def _require(self, data: Path, split: Split) -> None:
        there = [task.name for task in self.having(split) if all((data / name).is_file() for name in task.files(split))]
        try:
            super()._require(data, split)
        except ConfigError as error:
            if not there:
                raise
            raise ConfigError(f"{error}; or name the tasks that are there: --args tasks={','.join(there)}") from error


class _Benchmarks(Family):
    """Those whose texts have a longest length."""

    members: ClassVar[tuple[type[Benchmark], ...]]
    most_characters: int = Field(default=2600, ge=100)
    """Longest text in a prompt, as in each of the tasks."""

    def make(self, member: type[Task]) -> Task:
        """With texts of that length at most."""
        return member.model_validate({"most_characters": self.most_characters})


class Glue(_Benchmarks):
    """Example: ``Glue(tasks="sst2,rte")``."""

    name = "glue"
    title = "the tasks of GLUE, each in a directory of its name"
    members = (Cola, Sst2, Mrpc, Stsb, Qnli, Mnli, Rte, Wnli)


class Superglue(_Benchmarks):
    """Example: ``Superglue(tasks="boolq,cb")``."""

    name = "superglue"
    title = "the tasks of SuperGLUE, files as in docs/tasks.md"
    members = (Boolq, Cb, Copa, Multirc, Record, Rte, Wic, Wsc)
