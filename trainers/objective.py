"""The loss of a pack, as ``learner.objective`` says.

    proximal - behaviour ──► correction ──► weights ─┐
    logprobs, advantages ──► form of the objective ──┴──► + KL - entropy + loss of values ──► terms
    rewards, values before the update ──► GAE ──► advantages, returns        (with a value head: trainers/returns.py)
    demonstrated tokens ──► as if the policy, as it is now, had drawn them: ratio 1, weight 1

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N803, N806, N815 - the suffixes are the shapes

from typing import NamedTuple, TypeVar

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
from trainers.losses.value import value_loss
from trainers.packing import Pack
from trainers.returns import MOMENTS, Returns, find_returns, moments


class Terms(NamedTuple):
    """What each trained token contributes, and what is to be said of it."""

    terms_R: torch.Tensor
    """Times the pack's weights, and summed over all packs of all ranks, they are the loss of the step."""
    figures: dict[str, torch.Tensor]
    """For each of the objective's figures float32 values without a gradient, to be averaged over tokens."""
    left_out: dict[str, torch.Tensor]
    """For some of them bool: the tokens of which they say nothing."""


class Before(NamedTuple):
    """What is known of a pack before the first update of its batch; nothing has a gradient."""

    proximal_R: torch.Tensor
    """Logprobs of the policy."""
    reference_R: torch.Tensor | None = None
    """Logprobs of the reference policy, where the objective uses them."""
    returns: Returns | None = None
    """Of the value head, where there is one."""


class _Extra(NamedTuple):
    coefficient: float
    values_R: torch.Tensor


class Objective:
    """Computes the loss of packs.

    Attributes:
        needs_proximal: whether the logprobs of the policy before the first update of a batch are used, so that
            with several updates they have to be recorded.
        needs_reference: whether the logprobs of the reference policy are used.
        needs_entropy: whether the entropy of the policy is used.
        needs_values: whether the values of a value head are used.
        figures: the names of what is averaged over tokens.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self._config, self._recipe = config, config.recipe
        self.needs_reference = config.kl_coefficient > 0
        self._kl_in_reward = self.needs_reference and config.kl_place == "reward"
        self.needs_values = config.name == "ppo"
        self.needs_proximal = config.correction != "none" or self._kl_in_reward
        self.needs_entropy = config.entropy_coefficient > 0
        corrected = ("correction_cut", "correction_weight") if config.correction != "none" else ()
        extras = (("kl",) if self.needs_reference else ()) + (("entropy",) if self.needs_entropy else ())
        self.figures = ("clip_fraction", *corrected, *extras, *(("value_loss", *MOMENTS) if self.needs_values else ()))

    def find_returns(self, pack: Pack, values_R: torch.Tensor, before: Before) -> Returns:
        """What the values before the first update of a batch say of a pack; see :class:`trainers.returns.Returns`."""
        penalties_R = self._penalties(pack, before)
        return find_returns(
            pack, values_R.detach(), penalties_R, gamma=self._config.gamma, gae_lambda=self._config.gae_lambda
        )

    def __call__(
        self,
        logprobs_R: torch.Tensor,
        pack: Pack,
        before: Before | None = None,
        *,
        entropy_R: torch.Tensor | None = None,
        values_R: torch.Tensor | None = None,
    ) -> Terms:
        """The loss of a pack.

        Args:
            logprobs_R: of the trained tokens, with a gradient.
            pack: has their behaviour logprobs, advantages and sequences.
            before: the first update of the batch; null where this is the first and nothing else is needed.
            entropy_R: of the policy where it chose them, in nats, with a gradient.
            values_R: of the value head, with a gradient.
        """
        before = before or Before(logprobs_R.detach())
        sequences = Sequences.count(pack.sequence_R, len(pack.lengths))
        behaviour_R, proximal_R = (
            torch.where(pack.demonstrated_R, logprobs_R.detach(), others_R)
            for others_R in (pack.behaviour_R, before.proximal_R)
        )
        correction = self._correct(proximal_R - behaviour_R, pack, sequences)
        extras = self._extras(logprobs_R, pack, before, entropy_R, values_R)
        anchor_R = behaviour_R if self._config.correction in WITHOUT_WEIGHTS else proximal_R
        surrogate = self._form(logprobs_R, anchor_R, self._advantages(pack, before, sequences), sequences)
        terms_R = surrogate.terms_R * correction.weights_R
        for extra in extras.values():
            terms_R = terms_R + extra.coefficient * extra.values_R
        figures = self._figures(surrogate, correction, extras)
        figures |= moments(before.returns) if before.returns else {}
        return Terms(terms_R, figures, self._left_out(pack))

    def _correct(self, gap_R: torch.Tensor, pack: Pack, sequences: Sequences) -> Correction:
        """Nothing is corrected of what no policy drew, whatever the bounds."""
        found = correct(self._config.correction, gap_R, sequences, self._config.bounds)
        weights_R = found.weights_R.masked_fill(pack.demonstrated_R, 1.0)
        return Correction(weights_R, found.cut_R & ~pack.demonstrated_R)

    def _left_out(self, pack: Pack) -> dict[str, torch.Tensor]:
        """Figures compare policies on tokens that one of them drew, and values with rewards of answers."""
        of_values = ("value_loss", *MOMENTS)
        return {
            name: pack.as_given_R if name in of_values else pack.demonstrated_R
            for name in self.figures
            if name != "entropy"
        }

    def _extras(
        self,
        logprobs_R: torch.Tensor,
        pack: Pack,
        before: Before,
        entropy_R: torch.Tensor | None,
        values_R: torch.Tensor | None,
    ) -> dict[str, _Extra]:
        config, extras = self._config, {}
        if self.needs_reference:
            kl_R = kl(logprobs_R, _require(before.reference_R, "reference_R"), config.kl_estimator)
            drawn_R = kl_R.masked_fill(pack.demonstrated_R, 0.0)  # of others it estimates nothing
            extras["kl"] = _Extra(0.0 if self._kl_in_reward else config.kl_coefficient, drawn_R)
        if self.needs_entropy:
            extras["entropy"] = _Extra(-config.entropy_coefficient, _require(entropy_R, "entropy_R"))
        if self.needs_values:
            known, returns = _require(values_R, "values_R"), _require(before.returns, "values_R")
            loss_R = value_loss(known, returns.values_R, returns.returns_R, clip=config.value_clip)
            extras["value_loss"] = _Extra(config.value_coefficient, loss_R.masked_fill(pack.as_given_R, 0.0))
        return extras

    def _advantages(self, pack: Pack, before: Before, sequences: Sequences) -> torch.Tensor:
        """As a reward the divergence of a token lowers the return of that token and of those before it."""
        if before.returns:
            return torch.where(pack.as_given_R, pack.advantages_R, before.returns.advantages_R)
        penalties_R = self._penalties(pack, before)
        return pack.advantages_R if penalties_R is None else pack.advantages_R - sequences.to_go(penalties_R)

    def _penalties(self, pack: Pack, before: Before) -> torch.Tensor | None:
        """What the divergence before the update takes off each token's reward; nothing of what stands as it is."""
        if not self._kl_in_reward:
            return None
        reference_R = _require(before.reference_R, "reference_R")
        kl_R = kl(before.proximal_R, reference_R, self._config.kl_estimator).masked_fill(pack.as_given_R, 0.0)
        return self._config.kl_coefficient * kl_R

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


_Given = TypeVar("_Given")


def _require(given: _Given | None, name: str) -> _Given:
    if given is None:
        raise ValueError(f"{name} is None, but learner.objective uses it: see Objective.needs_{name[:-2]}")
    return given
