"""``exact_match``: the answer is, word for word, the right one."""

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class RightText(Arguments):
    """Example: ``{"answer": "Paris", "ignore_case": true}``."""

    answer: str
    ignore_case: bool = False


@reward("exact_match")
def exact_match(sample: Sample, arguments: RightText) -> Reward:
    """1 if response and answer are equal but for white space around and between words, else 0."""
    given, right = (" ".join(text.split()) for text in (sample.response_text, arguments.answer))
    if arguments.ignore_case:
        given, right = given.casefold(), right.casefold()
    return Reward(float(given == right))
