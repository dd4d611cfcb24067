"""What a task is: a data set in a directory of the user, as prompts with a reward.

A task is a class of its own module; its fields are what it can be told (``submit translation --args to=fr``).
``pipelines/tasks/registry.py`` lists all of them.
"""

import random
import sys
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from schemas.errors import AsyncFlowError, ConfigError
from schemas.prompts import Message, Prompt, RewardSpec
from transforms.modules import line_of

Split = Literal["train", "held_out"]


class Task(BaseModel):
    """One data set. Unknown arguments are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    """By which people ask for it."""
    title: ClassVar[str]
    """What it is, in a line."""

    @property
    def label(self) -> str:
        """Its name in prompts and figures: those of other arguments have another one."""
        return self.name

    @abstractmethod
    def files(self, split: Split) -> tuple[str, ...]:
        """The files of a split, below the directory of the data; none if the task lacks the split."""

    @abstractmethod
    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """What is asked and how the answer is scored, in the order of the files, which are there.

        Raises:
            ConfigError: a file does not hold what it should.
        """

    def prompts(self, data: Path, split: Split) -> Iterator[Prompt]:
        """All prompts of a split, in the order of the files; the id ends with the row's number, from 0.

        Raises:
            ConfigError: a file is missing, or does not hold what it should.
        """
        self._require(data, split)
        number = 0
        try:
            for number, (text, reward) in enumerate(self.rows(data, split), start=1):
                yield self._prompt(f"{split}/{number - 1}", text, reward)
        except AsyncFlowError:
            raise
        except Exception as error:  # the code of a user's own task
            where = line_of(error, sys.modules[type(self).__module__].__file__ or "")
            told = f"{type(error).__name__}: {error}{where}"
            raise ConfigError(f"task {self.name}: {told}, after {number} rows; mend the task or its data") from error

    def shuffled(self, data: Path, split: Split, seed: int) -> list[Prompt]:
        """All prompts of a split, in an order that depends on the seed alone.

        Raises:
            ConfigError: a file is missing, does not hold what it should, or holds no rows.
        """
        prompts = list(self.prompts(data, split))
        if not prompts:
            raise ConfigError(f"task {self.name}: no rows in {', '.join(self.files(split))}")
        random.Random(seed).shuffle(prompts)
        return prompts

    def _prompt(self, place: str, text: str, reward: RewardSpec) -> Prompt:
        messages = (Message(role="user", content=text),)
        return Prompt(prompt_id=f"{self.label}/{place}", task=self.label, messages=messages, reward=reward)

    def _require(self, data: Path, split: Split) -> None:
        if not self.files(split):
            raise ConfigError(f"task {self.name} has no split {split}; give the other one with --split")
        missing = [name for name in self.files(split) if not (data / name).is_file()]
        if missing:
            raise ConfigError(
                f"task {self.name}: {data} lacks {', '.join(missing)}; give the directory that holds the data with "
                f"--data DIR ({self.title})"
            )
