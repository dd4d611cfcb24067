"""``chat``: questions about countries, and users who like a style; in the middle they begin to like another one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.simulation.application import Question, Verdict
from pipelines.simulation.preferences import Preference, find
from schemas.errors import ConfigError

QUESTIONS: Final = tuple(
    f"What is the {what} of {where}?" for what in ("capital", "language", "climate", "history")
    for where in ("France", "Japan", "Brazil", "Kenya", "Canada", "Egypt", "India", "Norway")
)  # fmt: skip
"""What is asked where no file of questions is given."""


@dataclass(frozen=True)
class Change:
    """What the population likes, and from when on something else."""

    first: Preference
    then: Preference
    at_answer: int
    """From this answer on; all are counted together."""

    def at(self, answer: int) -> Preference:
        """What is liked at an answer."""
        return self.first if answer < self.at_answer else self.then


@dataclass(frozen=True)
class Chat:
    """An :class:`~pipelines.simulation.application.Application`."""

    change: Change
    questions: tuple[Question, ...] = tuple(map(Question, QUESTIONS))
    task: str = "chat"

    def judge(self, number: int, question: Question, text: str) -> Verdict:  # noqa: ARG002 - a matter of style alone
        """By the preference of the moment."""
        return Verdict(self.change.at(number)(text))

    def correct(self, question: Question) -> str | None:  # noqa: ARG002 - the form of all applications
        """Nobody says what they would have liked."""
        return None


def open_chat(first: str, then: str, change_at: int, questions: Path | None = None) -> Chat:
    """Users who like what the rule ``first`` says, and from an answer on what ``then`` says.

    Raises:
        ConfigError: a preference that does not exist, or a file of questions that cannot be read.
    """
    change = Change(find(first), find(then), change_at)
    return Chat(change) if questions is None else Chat(change, tuple(map(Question, _read(questions))))


def _read(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"questions {path}: {error}; give a text file with one question a line") from error
    if not lines:
        raise ConfigError(f"questions {path}: no question in it; give a text file with one a line")
    return lines
