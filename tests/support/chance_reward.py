"""A reward that does not read the answer: for controls, in which nothing can be learned of what is right."""

from hashlib import sha256

from pydantic import Field

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

_FACES = 2**64


class Chance(Arguments):
    """Example: ``{"share": 0.25}``."""

    share: float = Field(ge=0, le=1)
    """Of the answers that are called right."""


@reward("by_chance")
def by_chance(sample: Sample, arguments: Chance) -> Reward:
    """1 for a share of all answers, else 0; who gets it follows from the sample's place in the run alone."""
    place = f"{sample.run}/{sample.prompt_partition}/{sample.prompt_offset}/{sample.sample_index}"
    drawn = int.from_bytes(sha256(place.encode()).digest()[:8], "big")
    return Reward(float(drawn < arguments.share * _FACES))
