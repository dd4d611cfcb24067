"""What a population does with a model: what it asks, what it thinks of answers, what it would have said instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Question:
    """Example: ``Question("I was charged twice. What is this about?", "payment")``."""

    text: str
    """The message as it is sent."""
    about: str = ""
    """What a right answer has to say; empty where answers are a matter of taste."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody really thinks of an answer. Example: ``Verdict(False, {"intent": True, "policy": False})``."""

    likes: bool
    parts: Mapping[str, bool] = field(default_factory=dict)
    """What was looked at, for figures; the same names for all answers of an application."""


class Application(Protocol):
    """One use of the model."""

    @property
    def task(self) -> str:
        """Of its questions: for grouping figures, and for the baseline of its rewards."""

    @property
    def questions(self) -> Sequence[Question]:
        """What may be asked."""

    def judge(self, number: int, question: Question, text: str) -> Verdict:
        """What is thought of an answer.

        Args:
            number: of the answer, all users' counted together.
            question: that was asked.
            text: of the answer.
        """

    def correct(self, question: Question) -> str | None:
        """What should have been answered; null if nobody would say."""
