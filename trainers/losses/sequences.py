"""Sums over the sequences of a pack.

Shape suffixes: R trained response tokens of a pack, S sequences of a pack.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class Sequences:
    """Which trained token belongs to which sequence. Each sum is spread over the tokens that it is of.

    Nothing here has a gradient. The order of additions is fixed, also on a GPU: a replay gets the same bits.
    """

    of_R: torch.Tensor
    """int64, ascending."""
    tokens_S: torch.Tensor
    """int64: trained tokens of each."""

    @classmethod
    def count(cls, of_R: torch.Tensor, sequences: int) -> Self:
        """Counts the tokens of each; the host does not wait for the device."""
        numbers_S = torch.arange(sequences, device=of_R.device)
        ends_S = torch.searchsorted(of_R, numbers_S, right=True)
        return cls(of_R, ends_S - torch.searchsorted(of_R, numbers_S))

    @torch.no_grad()
    def sum(self, values_R: torch.Tensor) -> torch.Tensor:
        """For each token the sum over its sequence."""
        sums_S = torch.segment_reduce(values_R.detach(), "sum", lengths=self.tokens_S, unsafe=True)
        return sums_S[self.of_R]

    @torch.no_grad()
    def mean(self, values_R: torch.Tensor) -> torch.Tensor:
        """For each token the mean over its sequence."""
        return self.sum(values_R) / self.tokens_S[self.of_R]

    @torch.no_grad()
    def to_go(self, values_R: torch.Tensor) -> torch.Tensor:
        """For each token the sum over itself and those after it in its sequence."""
        totals_R = values_R.detach().double().cumsum(0)  # a difference of sums over the whole pack
        last_S = self.tokens_S.cumsum(0) - 1
        return (totals_R[last_S][self.of_R] - totals_R).to(values_R) + values_R.detach()
