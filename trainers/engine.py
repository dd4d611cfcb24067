"""DeepSpeed around the policy: one call is one optimizer step.

    packs ──► forward ──► loss ──► backward (every pack) ──► all ranks agree on the norm ──► AdamW

Each stage of ZeRO shows its gradients to the optimizer in another shape, but all in full precision
and after they were summed over ranks. So clipping, the norm and the check for finite numbers live
there, in ``ClippedAdamW``, once for all stages.
"""
# ruff: noqa: N806 - the suffixes are the shapes

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from schemas.config import LearnerConfig, RunConfig
from schemas.crash_points import crash_point
from schemas.errors import ConfigError
from trainers.batch import Example
from trainers.disk import disk_errors
from trainers.losses.grpo import grpo
from trainers.packing import to_pack
from trainers.policy import Policy, load_model
from trainers.ranks import Ranks

_SHARDS: Final = "shards"
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
    logprob_gap_mean: float
    """Mean of |learner - behaviour| over the trained tokens, in nats."""
    clip_fraction: float
    """Share of trained tokens whose ratio was clipped."""


def learning_rate(config: LearnerConfig, steps_done: int, total_steps: int) -> float:
    """The rate of the next step: linear from 0 over the warm-up, then as the schedule says."""
    if steps_done < config.warmup_steps:
        return config.learning_rate * (steps_done + 1) / config.warmup_steps
    rest = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (steps_done - config.warmup_steps) / rest)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * shape[config.schedule]


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips to a global norm, and that does nothing on any rank if the norm is not finite.

    Attributes:
        norm: the norm at the last step, before clipping.
        applied: whether the last step changed the weights.
        armed: False while DeepSpeed sets itself up, which steps once with gradients of zero.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], config: LearnerConfig, ranks: Ranks) -> None:
        super().__init__(
            parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self._ranks = ranks
        self._max_norm = config.max_grad_norm
        self._copies = 1 if config.zero_stage else ranks.size  # at stage 0 every rank holds the whole gradient
        self.norm, self.applied, self.armed = math.nan, False, False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update, or none."""
        if not self.armed:
            return
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squares = sum(float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2 for gradient in gradients)
        self.norm = math.sqrt(self._ranks.sum([squares])[0] / self._copies)
        self.applied = math.isfinite(self.norm)
        if self.applied:
            torch._foreach_mul_(gradients, min(1.0, self._max_norm / (self.norm + 1e-6)))
            super().step(closure)


class Engine:
    """The policy, its optimizer and their state, on one rank."""

    def __init__(self, config: RunConfig, dtype: str, ranks: Ranks) -> None:
        if dtype not in _DTYPES:
            raise ConfigError(f"model.dtype = {dtype!r}: the learner trains in float32 or bfloat16")
        self._config, self._ranks, self.dtype = config.learner, ranks, dtype
        causal = load_model(config.model.path, _DTYPES[dtype]).to(ranks.device)
        self._policy = Policy(causal, config.temperature)
        self.vocabulary = int(causal.config.get_text_config().vocab_size)
        self._optimizer = ClippedAdamW(self._policy.parameters(), config.learner, ranks)
        self._engine = _initialize(self._policy, self._optimizer, config.learner, dtype)
        self._policy.eval()  # DeepSpeed switches to training mode, and with it dropout on
        self._optimizer.armed = True

    def train(self, work: Work) -> Outcome:
        """One optimizer step; a collective call."""
        crash_point("before_forward")
        totals = torch.zeros(3, dtype=torch.float64)
        for pack in work.packs:
            totals += self._accumulate(pack)
        crash_point("after_backward")
        for group in self._engine.optimizer.param_groups:
            group["lr"] = work.learning_rate
        self._optimizer.norm, self._optimizer.applied = math.nan, False
        self._engine.step()
        crash_point("after_step")
        loss, gap, clipped = self._ranks.sum(totals.tolist())
        return Outcome(self._optimizer.applied, loss, self._optimizer.norm, gap, clipped)

    def _accumulate(self, examples: Sequence[Example]) -> torch.Tensor:
        pack = to_pack(examples).to(self._ranks.device)
        logprobs_R = self._engine(pack.token_ids_N, pack.position_ids_N, pack.index_R, pack.target_R)
        clips = {"clip_low": self._config.clip_low, "clip_high": self._config.clip_high}
        terms_R, clipped_R = grpo(logprobs_R, pack.behaviour_R, pack.advantages_R, **clips)
        # DeepSpeed averages gradients over ranks; the weights add up to 1 over all of them.
        self._engine.backward((terms_R * pack.weights_R).sum() * self._ranks.size)
        gap_R = (logprobs_R.detach() - pack.behaviour_R).abs()
        figures_3R = torch.stack([terms_R.detach(), gap_R, clipped_R.float()])
        return (figures_3R * pack.weights_R).sum(1).double().cpu()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See :meth:`trainers.policy.Policy.weights`."""
        return self._policy.weights()

    def probe(self, token_ids: list[int]) -> list[float]:
        """See :meth:`trainers.policy.Policy.probe`."""
        return self._policy.probe(token_ids)

    def check(self, token_ids: list[int]) -> None:
        """See :meth:`trainers.policy.Policy.check`."""
        self._policy.check(token_ids)

    def save(self, directory: Path) -> None:
        """Writes model, optimizer and random states below ``directory``; a collective call.

        Raises:
            DiskError: there is no room or no permission.
        """
        state = {"rng": torch.get_rng_state()}
        if self._ranks.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        with disk_errors("checkpoint", directory):
            self._engine.save_checkpoint(str(directory), tag=_SHARDS, client_state=state, save_latest=False)

    def load(self, directory: Path) -> None:
        """Reads what :meth:`save` wrote. The files are pickles, so code: their hashes were checked before."""
        path, state = self._engine.load_checkpoint(str(directory), tag=_SHARDS)
        assert path is not None
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self._policy.eval()


def _initialize(policy: Policy, optimizer: ClippedAdamW, config: LearnerConfig, dtype: str) -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    # An all-reduce for inference that DeepSpeed compiles for 20 s at first use and that is never called here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=_settings(config, dtype))
    return engine


def _settings(config: LearnerConfig, dtype: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # step() is the boundary: steps differ in their number of packs
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": None,
    }
    if dtype == "bfloat16" and config.zero_stage:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
