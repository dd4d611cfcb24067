"""AdamW with what a step over many ranks needs: one norm for all of them, and nothing done if it is not finite.

Each stage of ZeRO shows its gradients to the optimizer in another shape, but all in full precision
and after they were summed over ranks. So clipping, the norm and the check for finite numbers live
here, once for all stages: DeepSpeed itself checks bfloat16 and not float32.
"""

import math
from collections.abc import Iterable
from typing import Any, Final

import torch

from schemas.config import LearnerConfig
from trainers.ranks import Ranks


def learning_rate(config: LearnerConfig, steps_done: int, total_steps: int) -> float:
    """The rate of the next step: linear from 0 over the warm-up, then as the schedule says."""
    if steps_done < config.warmup_steps:
        return config.learning_rate * (steps_done + 1) / config.warmup_steps
    rest = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (steps_done - config.warmup_steps) / rest)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * shape[config.schedule]


MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps for each weight."""


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips to a global norm, and that does nothing on any rank if the norm is not finite.

    Attributes:
        norm: the norm at the last step, before clipping, what pulls towards an anchor included.
        applied: whether the last step changed the weights.
        proximal_mu: how strongly weights are pulled towards the anchor; 0 for not at all.
        drift: how far the weights were from the anchor before the last step; not a number where nothing pulls.
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
        self.proximal_mu, self.drift = 0.0, math.nan
        self._anchors: list[torch.Tensor] = []

    def anchor(self) -> None:
        """Pulls towards the weights as they are now, in the form that the stage steps on: so it is exact at each."""
        self._anchors = [tensor.detach().clone() for tensor in self._all()] if self.proximal_mu else []

    def _all(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @property
    def updates(self) -> int:
        """How often the weights were changed."""
        return max((int(state["step"]) for state in self.state.values()), default=0)

    def prepare(self, parameters: Iterable[torch.Tensor], updates: int | None = None) -> None:
        """Has moments for these, zero where there were none; with ``updates`` as if it had done so many."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if updates is not None:
                state["step"].fill_(updates)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update, or none."""
        if not self.armed:
            return
        far = self._pull() if self._anchors else None
        gradients = [parameter.grad for parameter in self._all() if parameter.grad is not None]
        squares = self._sum_squares(gradients)
        if far is not None:
            self.drift = math.sqrt(self._sum_squares(far))
        self.norm = math.sqrt(squares)
        self.applied = math.isfinite(self.norm)
        if self.applied:
            torch._foreach_mul_(gradients, min(1.0, self._max_norm / (self.norm + 1e-6)))
            super().step(closure)

    def _sum_squares(self, tensors: list[torch.Tensor]) -> float:
        """Of all numbers on all ranks; a collective call."""
        norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
        squares = sum(norm**2 for norm in torch.stack(norms).tolist()) if norms else 0.0  # one wait for the device
        return self._ranks.sum([squares])[0] / self._copies

    def _pull(self) -> list[torch.Tensor]:
        """Adds the gradient of proximal_mu / 2 ||w - anchor||^2; gives w - anchor.

        Source: Li et al., Federated Optimization in Heterogeneous Networks, 2018, arXiv:1812.06127.
        """
        weights = self._all()
        far = torch._foreach_sub([weight.detach() for weight in weights], self._anchors)
        for weight, distance in zip(weights, far, strict=True):
            if weight.grad is None:
                weight.grad = distance * self.proximal_mu
            else:
                weight.grad.add_(distance, alpha=self.proximal_mu)
        return list(far)
