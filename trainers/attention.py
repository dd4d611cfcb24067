"""Causal attention over packed sequences: exact boundaries, and no mask of N x N.

    queries, keys, values of a pack ─┬─► one kernel for all sequences (CUDA, half precision) ─┬─► output of the pack
                                     └─► one causal kernel a sequence (everything else)      ─┘

Transformers finds the function by its name in ``config._attn_implementation`` and hands it what the
model was called with, so ``model(..., sequences=Sequences.of(lengths, device))`` reaches every layer,
also when a layer is computed again under activation checkpointing. Without ``sequences`` each row is one
sequence.

Shape suffixes: N tokens of a pack, S sequences, H query heads, K key-value heads, D width of a head.
"""
# ruff: noqa: N803 - the suffixes are the shapes

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention

from schemas.errors import ModelError

PACKED: Final = "asyncflow_packed"
"""Name of the attention function: what ``attn_implementation`` is for :func:`packed_attention`."""

_UNSUPPORTED: Final = ("softcap", "s_aux", "position_bias")
"""What some architectures add to the scores and no kernel here computes."""
_WIDEST_HEAD: Final = 256
"""Of the kernel for all sequences."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where the sequences of a pack begin and end."""

    lengths: tuple[int, ...]
    """Length S; they add up to N."""
    starts: torch.Tensor
    """int32, length S + 1, from 0 to N, on the device of the model."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Sequences":
        """The sequences of these lengths, one after the other."""
        starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), starts.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class _Rules:
    scaling: float | None
    window: int | None


def register() -> None:
    """Makes transformers know :data:`PACKED`. It has no mask function, so no mask is ever built for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(  # noqa: PLR0913 - what transformers calls
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    sequences: Sequences | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the layer; only for messages.
        query: of shape (1, H, N, D).
        key: of shape (1, K, N, D), K a divisor of H (grouped-query attention, arXiv 2305.13245).
        value: as ``key``, its D may differ.
        attention_mask: None; boundaries come from ``sequences``.
        sequences: boundaries; None if every row is one sequence.
        scaling: of the scores; None for 1 / sqrt(D).
        sliding_window: a token sees itself and the tokens before it, at most so many together; None for all.
        options: what else the architecture says; refused where it would change the result.

    Returns:
        Output of shape (1, N, H, D of the values), and no attention weights.

    Raises:
        ModelError: the architecture needs attention that is not causal, a mask, or scores that are changed.
    """
    _refuse_what_is_not_computed(module, attention_mask, options)
    rules = _Rules(scaling, sliding_window)
    if sequences is not None and _one_kernel_takes(query, value):
        return _one_kernel(query[0], key[0], value[0], sequences, rules), None
    lengths = list(sequences.lengths) if sequences else query.shape[2]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # only some kernels take fewer heads of keys, and none is slower with as many
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    return torch.cat([_one_sequence(q, k, v, rules) for q, k, v in parts], 2).transpose(1, 2), None


def _refuse_what_is_not_computed(module: torch.nn.Module, mask: torch.Tensor | None, options: dict[str, Any]) -> None:
    found = [name for name in _UNSUPPORTED if options.get(name) is not None]
    found += ["attention_mask"] if mask is not None else []
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        found.append("is_causal = False")
    if options.get("dropout"):
        found.append(f"dropout = {options['dropout']}")
    if found:
        raise ModelError(
            f"{type(module).__name__}: its attention needs {', '.join(found)}, expected plain causal attention, with "
            "or without a sliding window; this architecture cannot be trained packed, choose another"
        )


def _one_sequence(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: _Rules) -> torch.Tensor:
    """Of shape (1, H, length, D). A mask exists only for a sequence that is longer than the window."""
    length, window = query.shape[2], rules.window
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=rules.scaling)
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    seen = ones.tril() & ones.triu(1 - window)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=rules.scaling)


def _one_kernel_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    half = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    width = query.shape[3]
    return half and width == value.shape[3] <= _WIDEST_HEAD and width % 8 == 0 and _varlen() is not None


def _one_kernel(
    query_HND: torch.Tensor, key_KND: torch.Tensor, value_KND: torch.Tensor, sequences: Sequences, rules: _Rules
) -> torch.Tensor:
    """FlashAttention over sequences of any lengths (arXiv 2307.08691), of shape (1, N, H, D)."""
    attend, starts, longest = _varlen(), sequences.starts, max(sequences.lengths)
    assert attend is not None
    tensors = [query_HND, key_KND, value_KND]
    if _takes_fewer_key_heads(attend):
        options = {"enable_gqa": len(query_HND) != len(key_KND)}
    else:
        options, groups = {}, len(query_HND) // len(key_KND)
        tensors = [query_HND, key_KND.repeat_interleave(groups, 0), value_KND.repeat_interleave(groups, 0)]
    window = (-1 if rules.window is None else rules.window - 1, 0)
    query, key, value = (tensor.transpose(0, 1) for tensor in tensors)
    output: torch.Tensor = attend(query, key, value, starts, starts, longest, longest, scale=rules.scaling,
                                  window_size=window, **options)  # fmt: skip
    return output[None]


@functools.cache
def _varlen() -> Callable[..., Any] | None:
    """The kernel, if this torch has it with a scale and windows (2.11 has)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    wanted = {"scale", "window_size"}
    return varlen_attn if wanted <= set(inspect.signature(varlen_attn).parameters) else None


@functools.cache
def _takes_fewer_key_heads(attend: Callable[..., Any]) -> bool:
    """Whether the kernel is told of grouped-query heads (2.13); before, keys are repeated."""
    return "enable_gqa" in inspect.signature(attend).parameters
