"""The loss of a value head.

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import torch


def value_loss(values_R: torch.Tensor, before_R: torch.Tensor, returns_R: torch.Tensor, *, clip: float) -> torch.Tensor:
    """Half the squared error, clipped as in PPO's code (Schulman et al. 2017, arXiv:1707.06347).

    The bound is compared with none in Andrychowicz et al. 2020 (arXiv:2006.05990).

    Args:
        values_R: of the head that is trained, with a gradient.
        before_R: its values before the first update of the batch.
        returns_R: what it is trained towards.
        clip: a value that is further than this from where it was before gains nothing by going on; 0 for no bound.
    """
    errors_R = (values_R - returns_R).square()
    if clip:
        inside_R = before_R + torch.clamp(values_R - before_R, -clip, clip)
        errors_R = torch.maximum(errors_R, (inside_R - returns_R).square())
    return errors_R / 2
