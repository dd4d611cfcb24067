"""An update in bfloat16 at stage 0 of ZeRO, in few kernels: DeepSpeed's own waits for the device at every tensor.

    gradients in bfloat16 ──► in float32 ──► ClippedAdamW, on weights in float32 ──► weights in bfloat16

DeepSpeed 0.19.8 (``deepspeed/runtime/fp16/unfused_optimizer.py``) asks each gradient whether it is finite, computes a
norm of its own and multiplies every gradient by 1; :class:`trainers.optimizer.ClippedAdamW` does what is needed of
that, once for all of them. The bits are the same.
"""

from typing import Any

import torch

from trainers.optimizer import ClippedAdamW


def shorten(engine: Any, optimizer: ClippedAdamW, ranks: int) -> None:
    """Gives DeepSpeed's engine this step, where it would take its own for bfloat16 at stage 0.

    Args:
        engine: DeepSpeed's.
        optimizer: inside of it.
        ranks: how many train; one has nobody to average gradients with.
    """
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    wrapper = engine.optimizer
    if not isinstance(wrapper, FP16_UnfusedOptimizer):
        return
    wrapper.step = lambda: _step(wrapper, optimizer)
    if ranks == 1:
        engine.enable_backward_allreduce = False


@torch.no_grad()
def _step(wrapper: Any, optimizer: ClippedAdamW) -> bool:
    """True if nothing was done, as DeepSpeed has it."""
    lows = [low for group in wrapper.fp16_groups for low in group]
    fulls = [full for group in wrapper.fp32_groups for full in group]
    for full, gradient in zip(fulls, _in_float32(lows, fulls), strict=True):
        full.grad = gradient
    optimizer.step()
    if optimizer.applied:
        torch._foreach_copy_(lows, fulls)
    for full in fulls:
        full.grad = None
    wrapper.overflow = not optimizer.applied
    return bool(wrapper.overflow)


def _in_float32(lows: list[torch.Tensor], fulls: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients; zeros of what no pack has asked for."""
    given = [torch.zeros_like(low) if low.grad is None else low.grad for low in lows]
    found = [torch.empty_like(full) for full in fulls]
    torch._foreach_copy_(found, given)
    return found
