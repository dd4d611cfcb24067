"""``chrf``: how alike an answer and the right text are, character by character."""

from functools import cache
from typing import Any, Final

from pydantic import Field

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

_COMPARED_CHARACTERS: Final = 20_000
"""Of two texts; more takes too long where everybody's judgements wait for it."""


class RightTranslation(Arguments):
    """Example: ``{"reference": "Ein Hund läuft am Strand."}``."""

    reference: str = Field(min_length=1)
    """The text that would have been right."""


@reward("chrf")
def chrf(sample: Sample, arguments: RightTranslation) -> Reward:
    """The chrF of the response, from 0 to 1."""
    return Reward(similarity(sample.response_text, arguments.reference))


def similarity(text: str, reference: str) -> float:
    """The chrF of a text, from 0 to 1 (Popović 2015, doi:10.18653/v1/W15-3049), as sacrebleu computes it."""
    compared = text[:_COMPARED_CHARACTERS], [reference[:_COMPARED_CHARACTERS]]
    return float(_chrf().sentence_score(*compared).score) / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
