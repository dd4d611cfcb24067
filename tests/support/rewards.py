"""Rewards for tests."""

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class Letter(Arguments):
    """Which character is wanted."""

    letter: str


@reward("share_of")
def share_of(sample: Sample, arguments: Letter) -> Reward:
    """The share of one character in the answer: dense, so that a random model learns it in a few steps."""
    text = sample.response_text
    return Reward(text.count(arguments.letter) / max(1, len(text)))
