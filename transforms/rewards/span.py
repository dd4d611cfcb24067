"""``span``: how much of the answer's words are those of a right text, and whether they are the same.

Texts are compared as SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250): without letter case,
punctuation, articles and white space; the best of several right texts counts.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import Field, field_validator

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")


class RightSpans(Arguments):
    """Example: ``{"references": ["Olimpija Ljubljana", "Olimpija"]}``."""

    references: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Texts each of which would have been right."""

    @field_validator("references")
    @classmethod
    def _have_words(cls, references: tuple[str, ...]) -> tuple[str, ...]:
        if empty := [text for text in references if not normalise(text)]:
            raise ValueError(f"{empty[0][:80]!r} has no words but articles")
        return references


@reward("span")
def span(sample: Sample, arguments: RightSpans) -> Reward:
    """The token F1 of the response, from 0 to 1; whether it is a right text stands in the part ``exact``."""
    text = sample.response_text
    exact = is_exact(text, arguments.references)
    return Reward(token_f1(text, arguments.references), {"exact": float(exact)})


def is_exact(text: str, references: Iterable[str]) -> bool:
    """Whether a text is one of the right ones but for what does not count."""
    given = normalise(text)
    return any(given == normalise(reference) for reference in references)


def token_f1(text: str, references: Iterable[str]) -> float:
    """The best F1 between the words of a text and of a right one, from 0 to 1: words count as often as they occur."""
    given = Counter(normalise(text).split())
    return max((_f1(given, Counter(normalise(reference).split())) for reference in references), default=0.0)


def normalise(text: str) -> str:
    """A text in lower case, without punctuation and articles, one blank between words."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _f1(given: Counter[str], right: Counter[str]) -> float:
    return 2 * (given & right).total() / max(given.total() + right.total(), 1)
