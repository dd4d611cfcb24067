"""The policy gradient of CISPO: every token keeps its gradient, the ratio is a bounded weight.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import torch

from trainers.losses.surrogate import Surrogate, ratio


def cispo(
    logprobs_R: torch.Tensor,
    anchor_R: torch.Tensor,
    advantages_R: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """CISPO of MiniMax-M1 (2025, arXiv:2506.13585): a clipped importance weight, which has no gradient.

    Arguments as in :func:`trainers.losses.grpo.grpo`; the paper sets no lower bound, which is clip_low = 1.
    """
    ratio_R = ratio(logprobs_R.detach() - anchor_R)
    inside_R = torch.clamp(ratio_R, 1 - clip_low, 1 + clip_high)
    return Surrogate(-inside_R * advantages_R * logprobs_R, ratio_R != inside_R)
