"""The policy as it is trained: the language model under ``learner.objective``, with what the objective asks for.

    pack ──► Policy ──► logprobs, entropies, values ─┐
         ──► reference policy ──► logprobs ──────────┴─► Objective ──► loss

Shape suffix: R trained response tokens of one packed forward pass.
"""
# ruff: noqa: N806, N815 - the suffixes are the shapes

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
import torch

from schemas.config import RunConfig
from schemas.errors import StateError
from trainers.logits import find_room
from trainers.lora import adapter_of, add_adapter, without_adapter
from trainers.objective import Before, Objective
from trainers.packing import Pack
from trainers.policy import VALUE_HEAD, Policy, load_model
from trainers.ranks import Ranks
from trainers.returns import explain_variance, normalise
from trainers.trained import Loss

_log = structlog.get_logger(__name__)
_DIVIDES_WEIGHTS: Final = 3
"""The stage of ZeRO from which no rank has a whole weight, but while DeepSpeed's hooks gather it."""


class _Seen(NamedTuple):
    """What one forward pass gives."""

    logprobs_R: torch.Tensor
    entropy_R: torch.Tensor | None
    values_R: torch.Tensor | None


class PolicyGradient:
    """See :class:`trainers.trained.Trained`.

    Args:
        config: of the run.
        dtype: that the model is computed in.
        ranks: all that train.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, config: RunConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        self._config, self._ranks = config.learner.objective, ranks
        self._objective = Objective(self._config)
        self.figures: Sequence[str] = ("logprob_gap_mean", *self._objective.figures)
        self._lora = config.learner.lora
        causal = load_model(config.model.path, dtype)
        if self._lora.trains_adapter:
            add_adapter(causal, Path(config.model.path), self._lora, config.seed)
        self.language_model = causal.to(ranks.device)
        trained = sum(each.numel() for each in causal.parameters() if each.requires_grad)
        room = find_room(config.learner.kept_logits_bytes, ranks.device, trained)
        _log.info("room for logits", **room._asdict())
        policy = Policy(self.language_model, config.temperature, room, values=self._objective.needs_values)
        if config.learner.zero_stage < _DIVIDES_WEIGHTS:
            policy.part_probe()
        self.module: torch.nn.Module = policy
        self._reference: Policy | None = None
        if self._objective.needs_reference and not self._lora.trains_adapter:  # whole on every rank
            causal = load_model(config.model.path, dtype).to(ranks.device)
            self._reference = Policy(causal.requires_grad_(requires_grad=False), config.temperature, room)
        self.by_name, self.probe, self.check = policy.by_name, policy.probe, policy.check
        self.weights = self._adapter if self._lora.trains_adapter else policy.weights

    def _adapter(self, whole: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        return adapter_of(self.by_name() if whole is None else whole)

    def fresh(self, has: Callable[[str], bool]) -> set[str]:
        """The value head, if the configuration says that it may begin anew."""
        if not self._objective.needs_values or has(VALUE_HEAD):
            return set()
        if not self._config.fresh_value_head:
            raise StateError(
                "the checkpoint has no value head: the run was trained with another objective than ppo so far; set "
                "learner.objective.fresh_value_head = true to go on with a new one, or learner.objective.name back"
            )
        _log.warning("the checkpoint has no value head, going on with a new one")
        return {VALUE_HEAD}

    def look(self, packs: Iterable[Pack], updates: int) -> list[Before]:
        """A pass without gradients, where the first update does not show all that has to be known.

        That is so with several updates, and where advantages are normalised over the step. Otherwise each pack's
        own pass does, as the policy is still the one before the update: nothing is computed twice.
        """
        needs_values, normalised = self._objective.needs_values, self._config.normalise_advantages
        several = updates > 1 and (self._objective.needs_proximal or needs_values)
        if not several and not (needs_values and normalised):
            return []
        given = list(packs)
        with torch.no_grad():
            before = [self._before(self._see(self.module, pack), pack) for pack in given]
        if not (needs_values and normalised):
            return before
        known = [(pack, each.returns) for pack, each in zip(given, before, strict=True) if each.returns]
        found = normalise(known, self._ranks.sum)
        return [each._replace(returns=returns) for each, returns in zip(before, found, strict=True)]

    def loss(self, forward: Callable[..., Any], pack: Pack, before: Before | None) -> Loss:
        """The objective's terms, one for each trained token."""
        seen = self._see(forward, pack)
        known = before or self._before(seen, pack)
        told = self._objective(seen.logprobs_R, pack, known, entropy_R=seen.entropy_R, values_R=seen.values_R)
        gap_R = (seen.logprobs_R.detach() - pack.behaviour_R).abs()
        figures = {"logprob_gap_mean": gap_R, **told.figures}
        left_out = {"logprob_gap_mean": pack.demonstrated_R, **told.left_out}
        return Loss(told.terms_R, pack.weights_R, figures, left_out)

    def conclude(self, means: dict[str, float]) -> dict[str, float]:
        """Moments become the share of the variance that values explain."""
        return explain_variance(means)

    def _see(self, forward: Callable[..., Any], pack: Pack) -> _Seen:
        """Has the module called for what the objective uses."""
        asked = {"entropy": self._objective.needs_entropy, "values": self._objective.needs_values}
        wanted = {name: True for name, needed in asked.items() if needed}
        told = forward(pack, **wanted)
        logprobs_R, *others = told if wanted else (told,)
        found = dict(zip(wanted, others, strict=True))
        return _Seen(logprobs_R, found.get("entropy"), found.get("values"))

    def _before(self, seen: _Seen, pack: Pack) -> Before:
        """What is known of a pack by the policy as it is."""
        before = Before(seen.logprobs_R.detach(), self._refer(pack))
        if seen.values_R is None:
            return before
        return before._replace(returns=self._objective.find_returns(pack, seen.values_R, before))

    @torch.no_grad()
    def _refer(self, pack: Pack) -> torch.Tensor | None:
        """Logprobs under the reference policy, if there is one: with an adapter the same model without it."""
        if self._objective.needs_reference and self._lora.trains_adapter:
            with without_adapter(self.language_model):
                logprobs_R: torch.Tensor = self.module(pack)
                return logprobs_R
        return self._reference(pack) if self._reference else None
