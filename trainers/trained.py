"""What an engine trains: a module for DeepSpeed, and the loss of a pack.

    packs of a step ──► look, without gradients ──► what is known before the first update
    pack ──► module ──► loss: terms, their weights, figures

The policy is one (:mod:`trainers.policy_gradient`).

Shape suffix: K terms of the loss of one pack: its trained tokens, or pairs of its sequences.
"""
# ruff: noqa: N815 - the suffixes are the shapes

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch

from trainers.packing import Pack


class Loss(NamedTuple):
    """What a pack contributes."""

    terms_K: torch.Tensor
    """Times their weights, and summed over all packs of all ranks, they are the loss of the update."""
    weights_K: torch.Tensor
    """float32, without a gradient."""
    figures: dict[str, torch.Tensor]
    """For each of :attr:`Trained.figures` float32 values_K without a gradient, to be averaged with the weights."""
    left_out: Mapping[str, torch.Tensor] = MappingProxyType({})
    """For some of them bool_K: the terms of which they say nothing."""


class Trained(Protocol):
    """A model and what it learns.

    Attributes:
        module: is called by DeepSpeed, which divides its parameters.
        language_model: the Hugging Face model in it.
        figures: the names of what is said of each term.
    """

    module: torch.nn.Module
    language_model: Any
    figures: Sequence[str]

    def by_name(self) -> dict[str, torch.nn.Parameter]:
        """All that is trained, under the names that a checkpoint has."""
        ...

    def fresh(self, has: Callable[[str], bool]) -> set[str]:
        """Names that begin anew where a checkpoint does not have them.

        Args:
            has: whether it has a name.

        Raises:
            StateError: one is missing that has to be there.
        """
        ...

    def look(self, packs: Iterable[Pack], updates: int) -> Sequence[Any]:
        """What the loss has to know of packs before the first of their updates; a collective call.

        Args:
            packs: of this rank, in all updates of a step.
            updates: how many these are.

        Returns:
            One for each pack; empty where nothing has to be known.
        """
        ...

    def loss(self, forward: Callable[..., Any], pack: Pack, before: Any) -> Loss:
        """The loss of a pack.

        Args:
            forward: calls the module.
            pack: on its device.
            before: what :meth:`look` gave, or null.
        """
        ...

    def conclude(self, means: dict[str, float]) -> dict[str, float]:
        """What is told of a step, from the means of all figures."""
        ...

    def weights(self, whole: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """What others load: all weights under Hugging Face names.

        Args:
            whole: by the names of :meth:`by_name`; given where the module itself holds only parts of them.
        """
        ...

    def probe(self, token_ids: list[int]) -> list[float]:
        """What the weights make of a sequence, for each token but the first, by transformers' own attention."""
        ...

    def check(self, token_ids: list[int]) -> None:
        """Compares the module's numbers for packed sequences with those of transformers' own attention.

        Raises:
            ModelError: they differ.
        """
        ...
