"""What an answer's length does to its reward, before advantages are computed."""

from schemas.objectives import ObjectiveConfig
from schemas.trajectories import Sample
from trainers.purposes import RATED


def shaped(sample: Sample, config: ObjectiveConfig, length_tokens: int) -> float | None:
    """The reward less what the length costs; null stays null.

    What is no reward of an answer costs nothing: a correction is a difference to one that has paid already.

    Args:
        sample: one answer.
        config: has ``length_penalty`` and the overlong buffer.
        length_tokens: the longest answer.
    """
    if sample.reward is None or sample.purpose not in RATED:
        return sample.reward
    tokens = len(sample.response_token_ids)
    overlong = overlong_share(tokens, config.overlong_buffer_tokens, length_tokens)
    return sample.reward - config.length_penalty * tokens / length_tokens - config.overlong_penalty * overlong


def overlong_share(tokens: int, buffer_tokens: int, length_tokens: int) -> float:
    """How far an answer reaches into the last ``buffer_tokens``: 0 to 1 (DAPO, arXiv:2503.14476, equation 13)."""
    if not buffer_tokens:
        return 0.0
    return min(1.0, max(0.0, (tokens - (length_tokens - buffer_tokens)) / buffer_tokens))
