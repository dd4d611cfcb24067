"""``label``: the answer names the right one of several labels, and no other."""

import re
from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class RightLabel(Arguments):
    """Example: ``{"answer": "refund", "labels": ["refund", "order", "shipping address"]}``."""

    answer: str
    """The right one of ``labels``."""
    labels: tuple[str, ...] = Field(min_length=2)
    """All that may be named; letter case and white space between words do not tell them apart."""

    @model_validator(mode="after")
    def _tells_labels_apart(self) -> Self:
        known = [_plain(label) for label in self.labels]
        if "" in known or len(set(known)) < len(known):
            raise ValueError(f"labels {', '.join(map(repr, self.labels))[:200]}: one is blank or given twice")
        if _plain(self.answer) not in known:
            raise ValueError(f"answer {self.answer[:80]!r} is none of the labels")
        return self


@reward("label")
def label(sample: Sample, arguments: RightLabel) -> Reward:
    """1 if the response names the answer and no other label, else 0."""
    return Reward(float(named_in(sample.response_text, arguments.labels) == {_plain(arguments.answer)}))


def named_in(text: str, labels: Iterable[str]) -> set[str]:
    """The labels that a text names as whole words, in lower case.

    Where one label is part of another, the longer one is named: "shipping address" does not name "address".
    """
    by_length = sorted(labels, key=len, reverse=True)
    forms = "|".join(r"\s+".join(map(re.escape, label.split())) for label in by_length)
    return {_plain(found) for found in re.findall(rf"(?<!\w)(?:{forms})(?!\w)", text, re.IGNORECASE)}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
