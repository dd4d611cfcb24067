"""The clipped policy gradient of PPO, which GRPO, DAPO, Dr. GRPO and REINFORCE++ share.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import torch

from trainers.losses.surrogate import Surrogate, ratio


def grpo(
    logprobs_R: torch.Tensor,
    anchor_R: torch.Tensor,
    advantages_R: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """The surrogate of PPO (Schulman et al. 2017, arXiv:1707.06347), as GRPO has it (arXiv:2402.03300).

    Two bounds are from DAPO (arXiv:2503.14476). Dr. GRPO (arXiv:2503.20783) and REINFORCE++
    (arXiv:2501.03262) differ in advantage and aggregation only.

    Args:
        logprobs_R: of the policy that is trained, with a gradient.
        anchor_R: of the policy that the ratio is taken to.
        advantages_R: how much better than expected.
        clip_low: no gain below a ratio of 1 - clip_low.
        clip_high: no gain above a ratio of 1 + clip_high.
    """
    ratio_R = ratio(logprobs_R - anchor_R)
    inside_R = torch.clamp(ratio_R, 1 - clip_low, 1 + clip_high)
    terms_R = -torch.minimum(ratio_R * advantages_R, inside_R * advantages_R)
    return Surrogate(terms_R, ((ratio_R - inside_R) * advantages_R > 0).detach())
