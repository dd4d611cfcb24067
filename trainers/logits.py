"""How much memory the logits of one forward pass may take.

learner.kept_logits_bytes, or what the device has room for ──► Room ──► trainers/policy.py, pass by pass
"""

from typing import Any, Final, NamedTuple


class Room(NamedTuple):
    """What one forward pass may have at a time."""

    kept_bytes: int
    """Of logits, as the head gave them, that stay until the backward pass; the others are computed again there."""
    chunk_logits: int
    """Logits that are in float32 at the same time, once in the forward and once in the backward pass."""


SMALL: Final = Room(kept_bytes=1 << 30, chunk_logits=1 << 25)
"""Of a CPU: 1 GiB, and 128 MiB in float32."""

_SHARE: Final = 8
"""Kept logits get an eighth of what is free; a chunk in float32 gets an eighth of what was asked for."""
_STATE_BYTES: Final = 18
"""Of each trained weight, before its first step: 4 of a copy in float32, 8 of moments, 6 of gradients in both."""
_CHUNK_SHARE: Final = 128
_FLOAT_BYTES: Final = 4


def find_room(asked_bytes: int | None, device: Any, trained: int) -> Room:
    """The room on a device where the weights lie already.

    Args:
        asked_bytes: to be kept, by the configuration; null for what the device has room for.
        device: the torch device.
        trained: how many weights are trained.
    """
    if asked_bytes is not None:
        chunk = asked_bytes // (_SHARE * _FLOAT_BYTES)
        return Room(asked_bytes, max(SMALL.chunk_logits, chunk))
    if device.type != "cuda":
        return SMALL
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return divide(free_bytes, total_bytes, trained)


def divide(free_bytes: int, total_bytes: int, trained: int) -> Room:
    """The room on a GPU.

    An eighth of what will be free once the optimizer has what it needs is kept. A chunk in float32 is 1/128 of all
    memory, rounded down to a power of two: gradients are added chunk by chunk, so their last bits depend on it, and
    must not on what else lies in the memory.
    """
    left_bytes = max(0, free_bytes - _STATE_BYTES * trained)
    chunk = total_bytes // _CHUNK_SHARE // _FLOAT_BYTES
    return Room(left_bytes // _SHARE, max(SMALL.chunk_logits, 1 << (chunk.bit_length() - 1)))
