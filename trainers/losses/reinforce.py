"""The policy gradient without a ratio.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803 - the suffixes are the shapes

import torch

from trainers.losses.surrogate import Surrogate


def reinforce(logprobs_R: torch.Tensor, advantages_R: torch.Tensor) -> Surrogate:
    """REINFORCE (Williams 1992), which RLOO uses with its advantage (Ahmadian et al. 2024, arXiv:2402.14740)."""
    return Surrogate(-advantages_R * logprobs_R, torch.zeros_like(logprobs_R, dtype=torch.bool))
