"""What every form of the objective gives, and the ratio that most of them take.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N815 - the suffixes are the shapes

from typing import Final, NamedTuple

import torch

MOST_NATS: Final = 20.0
"""A log ratio beyond this is cut: its exponential would overflow, and infinity times 0 is not a number."""


class Surrogate(NamedTuple):
    """What each trained token contributes."""

    terms_R: torch.Tensor
    """Of the loss, so to be made small; weights of tokens sum them up."""
    clipped_R: torch.Tensor
    """True where a bound on the ratio changed the gradient."""


def ratio(log_ratio_R: torch.Tensor) -> torch.Tensor:
    """The exponential of a difference of logprobs."""
    return log_ratio_R.clamp(-MOST_NATS, MOST_NATS).exp()
