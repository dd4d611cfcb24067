"""The loss of a reward model on pairs of answers to one prompt.

Shape suffix: S sequences of one packed forward pass; SS every sequence against every other.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

from typing import NamedTuple

import torch

from trainers.advantages import EPSILON


class Pairs(NamedTuple):
    """Each sequence of a pack against each other one: the first is the better one where there is a weight."""

    losses_SS: torch.Tensor
    weights_SS: torch.Tensor
    """What the pair counts; 0 for two of different groups, and where the first is not the better one."""
    margins_SS: torch.Tensor
    """By how much the first is scored higher; without a gradient."""


def bradley_terry(
    scores_S: torch.Tensor, rewards_S: torch.Tensor, group_S: torch.Tensor, weights_S: torch.Tensor
) -> Pairs:
    """-log sigmoid(score of the better - score of the worse), over all pairs of a group (arXiv:2203.02155).

    All pairs of a group are in one pass and together count as much as one group (the paper's 1 / (K choose 2)). There
    is no margin: rewards say which answer is the better one, not by how much.

    Args:
        scores_S: of the model, with a gradient.
        rewards_S: that the answers got.
        group_S: int64, which group each belongs to; a group is whole.
        weights_S: what the group counts in the loss of the step.
    """
    better_SS = (group_S[:, None] == group_S) & (rewards_S[:, None] > rewards_S + EPSILON)
    of_first_S = better_SS.sum(1).float()
    pairs_S = (group_S[:, None] == group_S).float() @ of_first_S
    weights_SS = better_SS * (weights_S / pairs_S.clamp(min=1))[:, None]
    margins_SS = scores_S[:, None] - scores_S
    return Pairs(-torch.nn.functional.logsigmoid(margins_SS), weights_SS, margins_SS.detach())
