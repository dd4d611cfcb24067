"""``support``: customers' messages, and agents who know which desk handles them and what may be said.

    message ─► model ─► "payment: I hand you over to a colleague."
                            │      └ policy: one short sentence, no promises of money, money matters are handed over
                            └ intent: the desk that handles the message, and no other

Each rule is a function of the answer's text. An answer is right if it names the right desk and breaks no rule.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.simulation.application import Question, Verdict
from pipelines.tasks.support import LABELS, Support
from pipelines.tasks.task import Split
from schemas.prompts import Prompt
from transforms.rewards.label import named_in

MOST_WORDS: Final = 12
"""Of the sentence to the customer."""
HANDED_OVER: Final = ("payment", "refund")
"""Desks whose answers leave the matter to a person."""
_HANDS_OVER: Final = re.compile(r"\b(?:hand|pass|put|forward|transfer|connect)\b.*\bcolleague\b", re.IGNORECASE)
_MONEY: Final = re.compile(
    r"\b(?:refund|reimburs|compensat)\w*|\bmoney\s+back\b|\bpa(?:y|id)\s+(?:\w+\s+)?back\b", re.IGNORECASE
)

_SENTENCES: Final = {
    "account": "I will look into your account.",
    "cancellation fee": "I will check that fee for you.",
    "contact": "I will put you through to somebody.",
    "delivery": "I will look into your delivery.",
    "feedback": "I will pass on what you say.",
    "invoice": "I will look up your invoice.",
    "newsletter": "I will see to your subscription.",
    "order": "I will look into your order.",
    "payment": "I hand you over to a colleague.",
    "refund": "I hand you over to a colleague.",
    "shipping address": "I will see to your address.",
}
ANSWERS: Final = {desk: f"{desk}: {_SENTENCES[desk]}" for desk in LABELS}
"""What agents would have answered, by desk."""


def names(text: str, desk: str) -> bool:
    """Whether an answer names a desk and no other: what the reward ``label`` asks for."""
    return named_in(text, LABELS) == {desk}


def has_form(text: str) -> bool:
    """A desk, a colon, and something for the customer; no second desk anywhere."""
    desk, sentence = _split(text)
    return desk in LABELS and sentence != "" and len(named_in(text, LABELS)) == 1


def is_short(text: str) -> bool:
    """At most twelve words for the customer, on one line."""
    _, sentence = _split(text)
    return len(sentence.split()) <= MOST_WORDS and "\n" not in sentence


def promises_nothing(text: str) -> bool:
    """The customer is told nothing of money that comes back: that is a person's to promise."""
    _, sentence = _split(text)
    return _MONEY.search(sentence) is None


def hands_over(text: str) -> bool:
    """Of payments and refunds the customer is told that a colleague goes on."""
    desk, sentence = _split(text)
    return desk not in HANDED_OVER or _HANDS_OVER.search(sentence) is not None


POLICY: Final[tuple[Callable[[str], bool], ...]] = (has_form, is_short, promises_nothing, hands_over)


def keeps_policy(text: str) -> bool:
    """Whether an answer breaks none of the rules, whichever desk it names."""
    return all(rule(text) for rule in POLICY)


def _split(text: str) -> tuple[str, str]:
    """The desk before the first colon, in lower case, and the rest."""
    desk, _, sentence = text.strip().partition(":")
    return " ".join(desk.casefold().split()), sentence.strip()


@dataclass(frozen=True)
class Agents:
    """An :class:`~pipelines.simulation.application.Application`; of each question ``about`` is the right desk."""

    questions: tuple[Question, ...]
    task: str = Support.name

    def judge(self, number: int, question: Question, text: str) -> Verdict:  # noqa: ARG002 - they never change
        """By the desk and the policy."""
        parts = {"intent": names(text, question.about), "policy": keeps_policy(text)}
        return Verdict(all(parts.values()), parts)

    def correct(self, question: Question) -> str:
        """What an agent would have answered."""
        return ANSWERS[question.about]


def open_support(data: Path, split: Split = "train") -> Agents:
    """Agents, and the messages of a split.

    Args:
        data: directory that holds ``bitext/``.
        split: whose messages come in.

    Raises:
        ConfigError: the data is missing or wrong.
    """
    return Agents(tuple(map(_to_question, Support().prompts(data, split))))


def _to_question(prompt: Prompt) -> Question:
    (message,) = prompt.messages or ()
    return Question(message.content, str(prompt.reward.args["answer"]))
