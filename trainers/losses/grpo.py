"""The clipped policy gradient of GRPO.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

from typing import NamedTuple

import torch


class Loss(NamedTuple):
    """What each trained token contributes."""

    terms_R: torch.Tensor
    """To be summed and divided by the number of trained tokens of the whole step (token mean)."""
    clipped_R: torch.Tensor
    """True where the ratio was cut off, so that the token gave no gradient."""


def grpo(
    logprobs_R: torch.Tensor,
    behaviour_R: torch.Tensor,
    advantages_R: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Loss:
    """The surrogate of GRPO (Shao et al. 2024, arXiv:2402.03300), without its KL term.

    The two bounds and the token mean are those of DAPO (Yu et al. 2025, arXiv:2503.14476).
    The ratio is taken to the behaviour policy, token by token: samples come with its logprobs.
    """
    ratio_R = torch.exp(logprobs_R - behaviour_R)
    inside_R = torch.clamp(ratio_R, 1 - clip_low, 1 + clip_high)
    terms_R = -torch.minimum(ratio_R * advantages_R, inside_R * advantages_R)
    return Loss(terms_R, ((ratio_R - inside_R) * advantages_R > 0).detach())
