"""Digests of bytes that lie in a GPU's memory, computed where they lie.

sha256 would have to bring them to a CPU: 14 GB take seconds. This is a universal hash of two sums
modulo 2^64 over the 64-bit words x_i of a block:

    y = x ^ (x >>> 33);  y = y * C mod 2^64;  y = y ^ (y >>> 29)         mixes, and loses nothing
    d_1 = sum of y_i * W_1(i),   d_2 = sum of y_i * W_2(i)               odd weights of splitmix64

One changed word always changes both sums. Any other change that does not know the weights, such as
torn copies, overwritten buffers, flipped bits or swapped words, keeps both with a probability near
2^-128. It is no defence against somebody who writes into the learner's memory on purpose: they could
change the weights before the digest is taken, too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

WORD_BYTES: Final = 8
BLOCK_BYTES: Final = 32 << 20
"""Digests are taken per block: a part of a model that is small enough to be named, large enough to be few."""
_GROUP_BLOCKS: Final = 4
"""Blocks that one kernel takes: a GPU is told what to do a few times instead of ten times for every block."""

_MIX: Final = 0xBF58476D1CE4E5B9 - (1 << 64)
_GOLDEN: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_SEEDS: Final = (0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)


def digests(buffer: Any) -> tuple[str, ...]:
    """The digest of every block of a buffer.

    Args:
        buffer: uint8 tensor of one dimension on any device, a multiple of 8 bytes long.

    Returns:
        32 hexadecimal digits for each :data:`BLOCK_BYTES`, the last block being shorter.
    """
    import torch

    words = buffer.view(torch.int64)
    weights = _weights(min(len(words), BLOCK_BYTES // WORD_BYTES), buffer.device)
    sums = []
    for blocks in _groups(words):
        mixed = _mix(blocks)
        sums.append(torch.stack([(mixed * weight[: blocks.shape[1]]).sum(1) for weight in weights], dim=1))
    found = torch.cat(sums).tolist() if sums else []
    return tuple(f"{one % (1 << 64):016x}{two % (1 << 64):016x}" for one, two in found)


def _groups(words: Any) -> list[Any]:
    """The blocks as matrices with one block in each row; the last block is shorter, and alone."""
    size = BLOCK_BYTES // WORD_BYTES
    whole, rest = words[: len(words) // size * size], words[len(words) // size * size :]
    return [*(whole.view(-1, size).split(_GROUP_BLOCKS) if len(whole) else ()), *((rest[None],) if len(rest) else ())]


def changed_blocks(buffer: Any, expected: Sequence[str]) -> list[int]:
    """Numbers of the blocks whose digests are not the expected ones, of which there is one for each block."""
    return [number for number, found in enumerate(digests(buffer)) if found != expected[number]]


def _mix(words: Any) -> Any:
    """A bijection of 64-bit words that carries every bit into the lower ones."""
    mixed = (words >> 33).bitwise_and_((1 << 31) - 1).bitwise_xor_(words)
    mixed.mul_(_MIX)
    return mixed.bitwise_xor_((mixed >> 29).bitwise_and_((1 << 35) - 1))


@lru_cache(maxsize=2)
def _weights(words: int, device: Any) -> tuple[Any, Any]:
    """Two odd 64-bit weights for every word of a block: splitmix64 of its position."""
    import torch

    position = torch.arange(1, words + 1, dtype=torch.int64, device=device)
    return tuple(_mix(_mix(position * _GOLDEN + seed)).bitwise_or_(1) for seed in _SEEDS)
