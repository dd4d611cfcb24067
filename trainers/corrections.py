"""Corrections for samples that another policy drew: an older one, or the same in another engine's arithmetic.

    logprobs of the proximal policy - those of the behaviour policy ──► weight of each token, what was cut

The proximal policy is the learner's before the update. Nothing here has a gradient: a weight multiplies a
token's term of the objective. What a mask cuts still counts in the denominators of the aggregation.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

from typing import Final, NamedTuple

import torch

from schemas.objectives import Bounds, CorrectionName
from trainers.losses.sequences import Sequences
from trainers.losses.surrogate import ratio

WITHOUT_WEIGHTS: Final[tuple[CorrectionName, ...]] = ("none", "geometric_mask")
"""They leave the ratio of the objective at the behaviour policy; all others take it to the proximal policy."""


class Correction(NamedTuple):
    """What becomes of each trained token."""

    weights_R: torch.Tensor
    """At least 0; multiplies the token's term."""
    cut_R: torch.Tensor
    """True where a bound made the weight smaller, or left the token out."""


def correct(name: CorrectionName, log_ratio_R: torch.Tensor, sequences: Sequences, bounds: Bounds) -> Correction:
    """Applies a correction.

    - ``decoupled``: the whole ratio (Hilton et al. 2022, arXiv:2110.00641; AReaL, arXiv:2505.24298).
    - ``truncated_token``: at most ``high`` (IMPALA, arXiv:1802.01561; Yao et al. 2025, "Your efficient RL
      framework secretly brings you off-policy RL training"); ``truncated_sequence``: the product over the sequence.
    - ``masked_token``, ``masked_sequence``: the ratio, and 0 above ``high`` (Liu et al. 2025, "When speed kills
      stability"); ``icepop``: of a token, and 0 out of both bounds (Ring-1T, arXiv:2510.18855).
    - ``geometric_mask``: 1, and 0 where the geometric mean over the sequence is out of both bounds.

    Args:
        name: which.
        log_ratio_R: proximal less behaviour logprobs.
        sequences: of the pack.
        bounds: of the ratio.
    """
    log_ratio_R = log_ratio_R.detach()
    if name == "none":
        return Correction(torch.ones_like(log_ratio_R), torch.zeros_like(log_ratio_R, dtype=torch.bool))
    if name in ("truncated_sequence", "masked_sequence"):
        log_ratio_R = sequences.sum(log_ratio_R)
    if name == "geometric_mask":
        log_ratio_R = sequences.mean(log_ratio_R)
    ratio_R = ratio(log_ratio_R)
    cut_R = _outside(ratio_R, bounds)
    if name.startswith("truncated"):
        return Correction(ratio_R.clamp(max=bounds.high), cut_R)
    weights_R = torch.ones_like(ratio_R) if name in WITHOUT_WEIGHTS else ratio_R
    return Correction(weights_R.masked_fill(cut_R, 0.0), cut_R)


def _outside(ratio_R: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    low, high = bounds
    below_R = ratio_R < (0.0 if low is None else low)
    return below_R | (ratio_R > (float("inf") if high is None else high))
