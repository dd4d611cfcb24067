"""DeepSpeed around the policy: one call is one optimizer step.

packs ──► forward ──► loss ──► backward (every pack) ──► all ranks agree on the norm ──► AdamW
"""
# ruff: noqa: N806 - the suffixes are the shapes

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.errors import ConfigError
from trainers import activations
from trainers.batch import Example
from trainers.deepspeed_config import deepspeed_settings
from trainers.disk import disk_errors
from trainers.full_state import FullState, load_weights
from trainers.objective import Objective
from trainers.optimizer import ClippedAdamW
from trainers.packing import Pack, to_pack
from trainers.policy import Policy, load_model
from trainers.ranks import Ranks

STATE_DIRECTORY: Final = "state"
"""Of a checkpoint: what :class:`trainers.full_state.FullState` writes."""
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Work:
    """A rank's part of one optimizer step."""

    packs: list[list[Example]]
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one optimizer step did; equal on all ranks."""

    applied: bool
    """False if the gradient was not finite: then no weight changed."""
    loss: float
    grad_norm: float
    """Before clipping."""
    figures: dict[str, float]
    """Means over the trained tokens, with their weights: ``logprob_gap_mean`` is that of |learner - behaviour| in
    nats, the others are those of :attr:`trainers.objective.Objective.figures`."""


class Engine:
    """The policy, its optimizer and their state, on one rank.

    Args:
        config: of the run.
        dtype: ``float32`` or ``bfloat16``.
        ranks: all that train.
        saved: a directory that :meth:`save` wrote to, by any ranks and at any stage; null for the model as it is.

    Raises:
        ConfigError: a setting contradicts another, or cannot be trained with.
        ModelError: the model cannot be loaded.
        StateError: what was saved is of another model.
    """

    def __init__(self, config: RunConfig, dtype: str, ranks: Ranks, saved: Path | None = None) -> None:
        if dtype not in _DTYPES:
            raise ConfigError(f"model.dtype = {dtype!r}: the learner trains in float32 or bfloat16")
        self._config, self._ranks, self.dtype = config.learner, ranks, dtype
        settings = deepspeed_settings(config, dtype, ranks.size)
        causal = load_model(config.model.path, _DTYPES[dtype]).to(ranks.device)
        if saved:
            load_weights(causal, saved / STATE_DIRECTORY)
        self._policy = Policy(causal, config.temperature)
        self.vocabulary = int(causal.config.get_text_config().vocab_size)
        self._objective = Objective(config.learner.objective)
        self._reference = self._load_reference(config) if self._objective.needs_reference else None
        self._optimizer = ClippedAdamW(self._policy.parameters(), config.learner, ranks)
        self._engine = _initialize(self._policy, self._optimizer, settings)
        self._calm()
        self._optimizer.armed = True
        self._state = FullState(causal, self._engine, self._optimizer)
        if saved:
            self._state.load(saved / STATE_DIRECTORY)

    def _load_reference(self, config: RunConfig) -> Policy:
        """The model that the run began with, whole on every rank; it is not trained."""
        causal = load_model(config.model.path, _DTYPES[self.dtype]).to(self._ranks.device)
        return Policy(causal.requires_grad_(requires_grad=False), config.temperature)

    @property
    def is_partitioned(self) -> bool:
        """Whether each rank holds only a part of every weight: then all that reads weights is a collective call."""
        return self._config.zero_stage == 3

    def _calm(self) -> None:
        """DeepSpeed switches to training mode, and with it dropout on."""
        self._policy.eval()
        activations.prepare(self._policy.causal, checkpointing=self._config.activation_checkpointing)

    def train(self, work: Work) -> Outcome:
        """One optimizer step; a collective call."""
        crash_point("before_forward")
        totals = torch.zeros(3 + len(self._objective.figures), dtype=torch.float64, device=self._ranks.device)
        for pack in work.packs:
            totals += self._accumulate(pack)
        crash_point("after_backward")
        for group in self._engine.optimizer.param_groups:
            group["lr"] = work.learning_rate
        self._optimizer.norm, self._optimizer.applied = math.nan, False
        self._engine.step()
        crash_point("after_step")
        loss, weight, *sums = self._ranks.sum(totals.tolist())
        names = ("logprob_gap_mean", *self._objective.figures)
        figures = {name: each / (weight or 1.0) for name, each in zip(names, sums, strict=True)}
        return Outcome(self._optimizer.applied, loss, self._optimizer.norm, figures)

    def _accumulate(self, examples: Sequence[Example]) -> torch.Tensor:
        pack = to_pack(examples).to(self._ranks.device)
        logprobs_R, entropy_R = self._forward(pack)
        terms_R, figures = self._objective(logprobs_R, pack, reference_R=self._refer(pack), entropy_R=entropy_R)
        # DeepSpeed averages gradients over ranks; the weights are of all of them.
        self._engine.backward((terms_R * pack.weights_R).sum() * self._ranks.size)
        gap_R = (logprobs_R.detach() - pack.behaviour_R).abs()
        told_FR = torch.stack([terms_R.detach(), torch.ones_like(gap_R), gap_R, *figures.values()])
        return (told_FR * pack.weights_R).sum(1).double()

    def _forward(self, pack: Pack) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._objective.needs_entropy:
            logprobs_R, entropy_R = self._engine(pack, entropy=True)
            return logprobs_R, entropy_R
        return self._engine(pack), None

    @torch.no_grad()
    def _refer(self, pack: Pack) -> torch.Tensor | None:
        """Logprobs under the reference policy, if there is one."""
        return self._reference(pack) if self._reference else None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See :meth:`trainers.policy.Policy.weights`; a collective call if :attr:`is_partitioned`.

        Partitioned weights are put together one by one, in the memory of the CPU, on rank 0 alone: the others
        get an empty mapping.
        """
        if not self.is_partitioned:
            return self._policy.weights()
        whole = self._gather()
        return self._policy.weights(whole) if self._ranks.leads else {}

    def _gather(self) -> dict[str, torch.Tensor]:
        from deepspeed.runtime.zero import GatheredParameters

        whole = {}
        for name, parameter in self._policy.causal.named_parameters():
            with GatheredParameters([parameter]):
                if self._ranks.leads:
                    whole[name] = parameter.detach().to("cpu", copy=True)
        return whole

    def probe(self, token_ids: list[int]) -> list[float]:
        """See :meth:`trainers.policy.Policy.probe`."""
        return self._policy.probe(token_ids)

    def check(self, token_ids: list[int]) -> None:
        """See :meth:`trainers.policy.Policy.check`."""
        self._policy.check(token_ids)

    def save(self, directory: Path) -> None:
        """Writes what training goes on from below ``directory``; a collective call.

        Raises:
            DiskError: there is no room or no permission.
        """
        state = directory / STATE_DIRECTORY
        with disk_errors("checkpoint", directory):
            state.mkdir(exist_ok=True)
            self._state.save(state, self._ranks.rank, self._ranks.size)


def _initialize(policy: Policy, optimizer: ClippedAdamW, settings: dict[str, Any]) -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    # An all-reduce for inference that DeepSpeed compiles for 20 s at first use and that is never called here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
    return engine
