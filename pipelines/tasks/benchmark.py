"""What the tasks of a benchmark share: their files, how they are divided, how long a text may be, label words.

files ──read──► rows ──divide──► those of the split ──ask──► text, question, "Answer with one of: ..." ──► label
"""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pipelines.tasks.division import held_out
from pipelines.tasks.tables import Row, Source, read
from pipelines.tasks.task import Split, Task
from schemas.prompts import RewardSpec


class Benchmark(Task):
    """A task whose rows are in tables."""

    train: ClassVar[tuple[Source, ...]]
    """Files of what may be trained, one after the other."""
    held_out: ClassVar[tuple[Source, ...]]
    """Files of what is held out; the same ones where ``keys`` divide their rows."""

    most_characters: int = Field(default=2600, ge=100)
    """Longest text; a longer one is cut behind a word and ends with "...", so that every row remains."""

    def files(self, split: Split) -> tuple[str, ...]:
        """Its tables."""
        return tuple(source.name for source in self._sources(split))

    def keys(self, row: Row) -> tuple[str, ...]:
        """The texts that a row shares with others, such as a passage with many questions; of one file for both splits.

        Rows that share one are in the same split.
        """
        raise NotImplementedError(f"{self.name}: rows of {row.where} are divided by no text")

    def read(self, data: Path, split: Split) -> Iterator[Row]:
        """The rows of a split, in the order of the files.

        Raises:
            ConfigError: a file does not hold what it should.
        """
        rows = chain.from_iterable(read(data, source) for source in self._sources(split))
        return rows if self.train != self.held_out else self._divide(list(rows), split)

    def _divide(self, rows: list[Row], split: Split) -> Iterator[Row]:
        sides = held_out([self.keys(row) for row in rows])
        return (row for row, side in zip(rows, sides, strict=True) if side == (split == "held_out"))

    def _sources(self, split: Split) -> tuple[Source, ...]:
        return self.train if split == "train" else self.held_out

    def shorten(self, text: str) -> str:
        """A text that is no longer than it may be."""
        if len(text) <= self.most_characters:
            return text
        return f"{text[: self.most_characters - 3].rsplit(maxsplit=1)[0]}..."


class Labelled(Benchmark):
    """A task whose right answer is one of a few words."""

    words: ClassVar[tuple[tuple[str, str], ...]]
    """What the files call a class, in lower case, and the word that the model is to say."""
    label_column: ClassVar[str] = "label"
    """Where the files have it."""

    @abstractmethod
    def ask(self, row: Row) -> str:
        """The text and the question about it."""

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a question."""
        words = dict(self.words)
        for row in self.read(data, split):
            yield choose(self.ask(row), tuple(words.values()), row.word(self.label_column, words))


def choose(question: str, labels: tuple[str, ...], answer: str) -> tuple[str, RewardSpec]:
    """A question with the labels it may be answered with, and its reward."""
    text = f"{question} Answer with one of: {', '.join(labels)}."
    return text, RewardSpec(name="label", args={"answer": answer, "labels": list(labels)})
