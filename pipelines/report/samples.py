"""The answers of a run as the page keeps them: bounded in number and in characters, evenly over the run.

groups in the order of the log ──► SampleBook.add ──► every stride-th group, each answer cut at ``cut`` characters
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from schemas.identity import GroupId

MAX_SAMPLES = 100_000
MAX_CHARACTERS = 64_000_000
"""Of all answers together, in memory."""
MAX_ANSWER_CHARACTERS = 8_000
MAX_PROMPT_CHARACTERS = 2_000


@dataclass(slots=True)
class KeptSample:
    """One answer."""

    answer: str
    """Its text up to the book's ``cut``."""
    characters: int
    """Of the whole text."""
    tokens: int
    reward: float | None
    error: str | None
    """Why there is no reward; null if there is one, or it is awaited."""
    finish: str
    """Its ``finish_reason``."""
    spans: tuple[tuple[int, int], ...]
    """Weight version, and the character of the whole text that its first token begins at; ascending from 0."""


@dataclass(slots=True)
class KeptGroup:
    """One attempt at one prompt that lies in the trajectories topic."""

    group: GroupId
    at: tuple[int, int]
    """Partition and offset of its record in the trajectories topic."""
    attempt: str
    prompt_id: str | None
    task: str
    purpose: str
    worker: str
    prompt_at: datetime
    generated_at: datetime
    versions: tuple[int, int]
    """Oldest and newest weight version among its tokens."""
    samples: tuple[KeptSample, ...]
    prompt: str = ""
    """As a person reads it, cut; empty until it is known."""

    def advantages(self) -> list[float | None]:
        """Each reward less the mean of the group's, null where there is no reward."""
        known = [sample.reward for sample in self.samples if sample.reward is not None]
        mean = sum(known) / len(known) if known else 0.0
        return [None if sample.reward is None else sample.reward - mean for sample in self.samples]


class SampleBook:
    """Keeps at most ``limit`` samples, of whole groups, and ``characters`` of their text.

    Attributes:
        stride: every so many groups one is kept.
        cut: characters at which answers are cut.
        seen: samples that were offered.
    """

    def __init__(self, limit: int = MAX_SAMPLES, characters: int = MAX_CHARACTERS) -> None:
        self._limit, self._characters = limit, characters
        self._groups: list[KeptGroup] = []
        self._kept = self._kept_characters = self._offered = 0
        self.stride, self.cut, self.seen = 1, MAX_ANSWER_CHARACTERS, 0

    def __iter__(self) -> Iterator[KeptGroup]:
        return iter(self._groups)

    def __len__(self) -> int:
        """Samples that are kept."""
        return self._kept

    def add(self, group: KeptGroup) -> None:
        """Offers the next group of the log."""
        self.seen += len(group.samples)
        if self._offered % self.stride == 0:
            self._keep(group)
        self._offered += 1
        while self._kept > self._limit and len(self._groups) > 1:
            self._halve()
        while self._kept_characters > self._characters and self.cut > 1:
            self._cut_at(self.cut // 2)

    def _keep(self, group: KeptGroup) -> None:
        for sample in group.samples:
            sample.answer = sample.answer[: self.cut]
            self._kept_characters += len(sample.answer)
        self._groups.append(group)
        self._kept += len(group.samples)

    def _halve(self) -> None:
        self.stride *= 2
        self._groups = self._groups[::2]
        self._kept = sum(len(group.samples) for group in self._groups)
        self._cut_at(self.cut)

    def _cut_at(self, characters: int) -> None:
        self.cut, self._kept_characters = characters, 0
        for group in self._groups:
            for sample in group.samples:
                sample.answer = sample.answer[:characters]
                self._kept_characters += len(sample.answer)
