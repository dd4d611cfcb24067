"""Advantages from a value head, token by token.

Shape suffix: T trained response tokens of one sequence.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import torch


@torch.no_grad()
def gae(rewards_T: torch.Tensor, values_T: torch.Tensor, *, discount: float, decay: float) -> torch.Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438) of one finished answer.

    Args:
        rewards_T: of each token; that of the answer is its last token's.
        values_T: what the value head expects before each token. After the last one nothing more comes.
        discount: what a token later is worth, 1 for as much.
        decay: the lambda of the paper, from 0 (one step ahead) to 1 (the whole return).

    Returns:
        advantages_T; with ``values_T`` added they are what the value head is trained towards.
    """
    ahead_T = torch.cat([values_T[1:], values_T.new_zeros(1)])
    surprises = (rewards_T + discount * ahead_T - values_T).tolist()
    advantages, later = [], 0.0
    for surprise in reversed(surprises):
        later = surprise + discount * decay * later
        advantages.append(later)
    return values_T.new_tensor(advantages[::-1])
