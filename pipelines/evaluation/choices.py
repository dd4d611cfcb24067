"""The texts of which an answer has to be one, where the reward of a prompt knows all of them.

Pure functions. An untrained model often says the right thing in the wrong form; held to the labels by the engine, it
shows what it knows. The choice is greedy token by token: of the tokens that begin or continue a label the likeliest.
"""

from typing import Final

from schemas.prompts import Prompt
from transforms.rewards.closeness import NearNumber
from transforms.rewards.label import RightLabel

_STEPS: Final = 25
"""Between the least and the most that may be answered. The similarities of STS-B, 0 to 5, are so in steps of 0.2, to
which T5 rounds them (Raffel et al. 2020, arXiv:1910.10683, section 2.4)."""


def choices_of(prompt: Prompt) -> tuple[str, ...]:
    """All answers that a prompt allows: the labels of ``label``, 26 numbers of ``closeness``, else none, for freedom.

    What an environment plays with the model stays free too: its turns have no labels.

    Raises:
        ValueError: the arguments are not those of the reward.
    """
    if prompt.environment is not None or prompt.function is None:
        return ()
    match prompt.function.name:
        case "label":
            return RightLabel.model_validate(prompt.function.args).labels
        case "closeness":
            return _numbers(NearNumber.model_validate(prompt.function.args))
    return ()


def _numbers(near: NearNumber) -> tuple[str, ...]:
    """From the least to the most, evenly, in as few digits as it takes. Example: ``("0", "0.2", ..., "4.8", "5")``."""
    width = near.highest - near.lowest
    return tuple(f"{near.lowest + width * step / _STEPS:.6g}" for step in range(_STEPS + 1))
