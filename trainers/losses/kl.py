"""Estimators of the divergence from a reference policy, token by token.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import torch

from schemas.objectives import KlEstimator
from trainers.losses.surrogate import ratio


def kl(logprobs_R: torch.Tensor, reference_R: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """Estimates KL(policy || reference) from tokens that the policy drew.

    They are those of Schulman (2020, "Approximating KL divergence"); GRPO has ``k3`` (arXiv:2402.03300). The mean
    of ``k1`` and of ``k3`` is the divergence, that of ``k2`` only nearly; ``k1`` may be negative. In a loss the
    gradient of ``k2`` is that of the divergence, and that of ``k3`` nearly (arXiv:2510.01555).
    """
    gap_R = logprobs_R - reference_R
    if estimator == "k1":
        return gap_R
    return gap_R.square() / 2 if estimator == "k2" else ratio(-gap_R) + gap_R - 1
