"""The clipped policy gradient of GSPO: the ratio is that of the whole sequence.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import torch

from trainers.losses.sequences import Sequences
from trainers.losses.surrogate import Surrogate, ratio


def gspo(  # noqa: PLR0913 - as grpo, and the sequences
    logprobs_R: torch.Tensor,
    anchor_R: torch.Tensor,
    advantages_R: torch.Tensor,
    sequences: Sequences,
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """GSPO (Zheng et al. 2025, arXiv:2507.18071) in its form by token, GSPO-token.

    The ratio is the geometric mean over the trained tokens of a sequence. Each token has its value and a
    gradient of its own, which add up to GSPO's where advantage and weight are the same along the sequence.
    Other arguments as in :func:`trainers.losses.grpo.grpo`.
    """
    own_R = (logprobs_R - logprobs_R.detach()).exp()  # 1, with the token's gradient
    ratio_R = ratio(sequences.mean(logprobs_R.detach() - anchor_R)) * own_R
    inside_R = torch.clamp(ratio_R, 1 - clip_low, 1 + clip_high)
    terms_R = -torch.minimum(ratio_R * advantages_R, inside_R * advantages_R)
    return Surrogate(terms_R, ((ratio_R - inside_R) * advantages_R > 0).detach())
