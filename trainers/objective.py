"""The loss of a pack, as ``learner.objective`` says.

    proximal - behaviour ──► correction ──► weights ─┐
    logprobs, advantages ──► form of the objective ──┴──► + KL - entropy ──► terms

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

from typing import NamedTuple

import torch

from schemas.objectives import ObjectiveConfig
from trainers.corrections import WITHOUT_WEIGHTS, Correction, correct
from trainers.losses.cispo import cispo
from trainers.losses.grpo import grpo
from trainers.losses.gspo import gspo
from trainers.losses.kl import kl
from trainers.losses.reinforce import reinforce
from trainers.losses.sequences import Sequences
from trainers.losses.surrogate import Surrogate
from trainers.packing import Pack


class Loss(NamedTuple):
    """What each trained token contributes, and what is to be said of it."""

    terms_R: torch.Tensor
    """Times the pack's weights, and summed over all packs of all ranks, they are the loss of the step."""
    figures: dict[str, torch.Tensor]
    """For each of :attr:`Objective.figures` float32 values without a gradient, to be averaged over tokens."""


class _Extra(NamedTuple):
    coefficient: float
    values_R: torch.Tensor


class Objective:
    """Computes the loss of packs.

    Attributes:
        needs_proximal: whether the logprobs of the policy before the update are used. In the first update of
            a batch they are those that are given anyway, so without them these are taken.
        needs_reference: whether the logprobs of the reference policy are used.
        needs_entropy: whether the entropy of the policy is used.
        figures: the names of what is said of each token.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self._config, self._recipe = config, config.recipe
        self.needs_proximal = config.correction not in WITHOUT_WEIGHTS
        self.needs_reference = config.kl_coefficient > 0
        self.needs_entropy = config.entropy_coefficient > 0
        corrected = ("correction_cut", "correction_weight") if config.correction != "none" else ()
        extras = (("kl",) if self.needs_reference else ()) + (("entropy",) if self.needs_entropy else ())
        self.figures = ("clip_fraction", *corrected, *extras)

    def __call__(
        self,
        logprobs_R: torch.Tensor,
        pack: Pack,
        *,
        proximal_R: torch.Tensor | None = None,
        reference_R: torch.Tensor | None = None,
        entropy_R: torch.Tensor | None = None,
    ) -> Loss:
        """The loss of a pack.

        Args:
            logprobs_R: of the trained tokens, with a gradient.
            pack: has their behaviour logprobs, advantages and sequences.
            proximal_R: their logprobs before the first update of the batch.
            reference_R: their logprobs under the reference policy.
            entropy_R: of the policy where it chose them, in nats, with a gradient.
        """
        sequences = Sequences.count(pack.sequence_R, len(pack.lengths))
        before_R = (logprobs_R if proximal_R is None else proximal_R).detach()
        correction = correct(self._config.correction, before_R - pack.behaviour_R, sequences, self._config.bounds)
        extras = self._extras(logprobs_R, reference_R, entropy_R)
        advantages_R = self._less_kl(pack.advantages_R, extras, sequences)
        anchor_R = before_R if self.needs_proximal else pack.behaviour_R
        surrogate = self._form(logprobs_R, anchor_R, advantages_R, sequences)
        terms_R = surrogate.terms_R * correction.weights_R
        for extra in extras.values():
            terms_R = terms_R + extra.coefficient * extra.values_R
        return Loss(terms_R, self._figures(surrogate, correction, extras))

    def _extras(
        self, logprobs_R: torch.Tensor, reference_R: torch.Tensor | None, entropy_R: torch.Tensor | None
    ) -> dict[str, _Extra]:
        config, extras = self._config, {}
        if self.needs_reference:
            kl_R = kl(logprobs_R, _require(reference_R, "reference_R"), config.kl_estimator)
            extras["kl"] = _Extra(config.kl_coefficient if config.kl_place == "loss" else 0.0, kl_R)
        if self.needs_entropy:
            extras["entropy"] = _Extra(-config.entropy_coefficient, _require(entropy_R, "entropy_R"))
        return extras

    def _less_kl(self, advantages_R: torch.Tensor, extras: dict[str, _Extra], sequences: Sequences) -> torch.Tensor:
        """As a reward the divergence of a token lowers the return of that token and of those before it."""
        if not self.needs_reference or self._config.kl_place == "loss":
            return advantages_R
        return advantages_R - self._config.kl_coefficient * sequences.to_go(extras["kl"].values_R)

    def _form(
        self, logprobs_R: torch.Tensor, anchor_R: torch.Tensor, advantages_R: torch.Tensor, sequences: Sequences
    ) -> Surrogate:
        clips = {"clip_low": self._recipe.clip_low, "clip_high": self._recipe.clip_high}
        if self._config.name == "rloo":
            return reinforce(logprobs_R, advantages_R)
        if self._config.name == "gspo":
            return gspo(logprobs_R, anchor_R, advantages_R, sequences, **clips)
        return (cispo if self._config.name == "cispo" else grpo)(logprobs_R, anchor_R, advantages_R, **clips)

    def _figures(
        self, surrogate: Surrogate, correction: Correction, extras: dict[str, _Extra]
    ) -> dict[str, torch.Tensor]:
        figures = {"clip_fraction": surrogate.clipped_R.float()}
        if self._config.correction != "none":
            figures |= {"correction_cut": correction.cut_R.float(), "correction_weight": correction.weights_R}
        return figures | {name: extra.values_R.detach() for name, extra in extras.items()}


def _require(values_R: torch.Tensor | None, name: str) -> torch.Tensor:
    if values_R is None:
        raise ValueError(f"{name} is None, but learner.objective uses it: see Objective.needs_{name[:-2]}")
    return values_R
