"""From rewards and a value head to advantages and returns, token by token.

    reward of the answer, less the divergence of each token ─┐
    values before the update ────────────────────────────────┴─► GAE a sequence ─► advantages, returns

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from trainers.advantages import EPSILON
from trainers.losses.gae import gae
from trainers.losses.sequences import Sequences
from trainers.packing import Pack

MOMENTS: Final = ("return_mean", "return_square", "value_error", "value_error_square")
"""Figures of each token whose means :func:`explain_variance` takes."""
_LEAST_VARIANCE: Final = 1e-9
"""Below it returns differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class Returns:
    """What a value head says of a pack before the first update of its batch. Nothing has a gradient."""

    values_R: torch.Tensor
    """What is expected before each token."""
    returns_R: torch.Tensor
    """What the head is trained towards: values and advantages, before these were normalised."""
    advantages_R: torch.Tensor


@torch.no_grad()
def find_returns(
    pack: Pack, values_R: torch.Tensor, penalties_R: torch.Tensor | None, *, gamma: float, gae_lambda: float
) -> Returns:
    """The advantages and returns of a pack.

    Args:
        pack: in place of advantages it has the reward of the answer at each of its tokens.
        values_R: of the head.
        penalties_R: taken off each token's own reward, if there is one.
        gamma: the discount of a token.
        gae_lambda: as in :func:`trainers.losses.gae.gae`.
    """
    tokens = Sequences.count(pack.sequence_R, len(pack.lengths)).tokens_S.tolist()
    rewards_R = -penalties_R if penalties_R is not None else torch.zeros_like(values_R)
    last_R = torch.ones_like(pack.sequence_R, dtype=torch.bool)
    last_R[:-1] = pack.sequence_R[1:] != pack.sequence_R[:-1]
    rewards_R = (rewards_R + torch.where(last_R, pack.advantages_R, 0.0)).to("cpu")
    pairs = zip(torch.split(rewards_R, tokens), torch.split(values_R.to("cpu"), tokens), strict=True)
    advantages_R = torch.cat([gae(*pair, discount=gamma, decay=gae_lambda) for pair in pairs]).to(values_R.device)
    return Returns(values_R, advantages_R + values_R, advantages_R)


def normalise(
    packs: Sequence[tuple[Pack, Returns]], sum_over_ranks: Callable[[list[float]], list[float]]
) -> list[Returns]:
    """Advantages of mean 0 and deviation 1 over all trained tokens of a step, on all ranks.

    Args:
        packs: of this rank, with what was found of them; tokens that only fill a pack have weight 0, and advantages
            that stand as they are take no part.
        sum_over_ranks: adds lists of numbers.
    """
    moments = torch.zeros(3, dtype=torch.float64)
    for pack, returns in packs:
        own_R = returns.advantages_R[(pack.weights_R > 0) & ~pack.as_given_R].double()
        moments += torch.stack([torch.ones_like(own_R).sum(), own_R.sum(), own_R.square().sum()]).to("cpu")
    count, total, squares = sum_over_ranks(moments.tolist())
    mean = total / max(1.0, count)
    deviation = max(0.0, squares / max(1.0, count) - mean**2) ** 0.5
    return [
        replace(returns, advantages_R=(returns.advantages_R - mean) / (deviation + EPSILON)) for _, returns in packs
    ]


def moments(returns: Returns) -> dict[str, torch.Tensor]:
    """The figures of :data:`MOMENTS`."""
    errors_R = returns.returns_R - returns.values_R
    values = (returns.returns_R, returns.returns_R.square(), errors_R, errors_R.square())
    return dict(zip(MOMENTS, values, strict=True))


def explain_variance(means: dict[str, float]) -> dict[str, float]:
    """Figures, with what the values explain of the returns' variance in place of moments.

    Args:
        means: over tokens; without moments they stay as they are.

    Returns:
        1 for values that are all right, 0 for what their mean alone would explain, less for worse ones;
        not a number where all returns are equal.
    """
    if "value_error" not in means:
        return means
    error = means["value_error_square"] - means["value_error"] ** 2
    variance = means["return_square"] - means["return_mean"] ** 2
    told = {name: mean for name, mean in means.items() if name not in MOMENTS or name == "return_mean"}
    explained = 1 - error / variance if variance > _LEAST_VARIANCE else math.nan
    return {**told, "value_explained_variance": explained}
