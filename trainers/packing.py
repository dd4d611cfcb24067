"""From examples to packed forward passes without padding, for every rank equal work.

    examples ──► packs of equal work, each of at most ``micro_batch_tokens`` ──► as many for each rank ──► tensors

Sequences lie one after the other in a pack. Each starts again at position 0, and attention is told their
lengths: no token sees another sequence.

Shape suffixes: N tokens of a pack, R trained response tokens of a pack, S sequences of a pack.
"""
# ruff: noqa: N815 - the suffixes are the shapes

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch

from trainers.batch import Example

Together: TypeAlias = Sequence[Example]
"""Examples that have to be in one pack."""
_Part: TypeAlias = tuple[int, list[Together]]
"""Tokens of some examples, and the examples."""

_NOTHING = Example((0, 0), 1, (0.0,), (True,), 0.0)


@dataclass(frozen=True, slots=True)
class Pack:
    """The sequences of one forward pass, one after the other."""

    token_ids_N: torch.Tensor
    """int64."""
    position_ids_N: torch.Tensor
    """int64, 0 at the start of every sequence."""
    index_R: torch.Tensor
    """int64: where the hidden state is that predicts the trained token."""
    target_R: torch.Tensor
    """int64: the trained tokens."""
    behaviour_R: torch.Tensor
    """float32 logprobs under the policy that drew them."""
    advantages_R: torch.Tensor
    """float32."""
    weights_R: torch.Tensor
    """float32: what each token counts in the loss of the step, see :func:`trainers.aggregation.weigh`."""
    sequence_R: torch.Tensor
    """int64, ascending: which sequence of the pack the token belongs to."""
    as_given_R: torch.Tensor
    """bool: whether the token's advantage stands as it is, see :class:`trainers.batch.Example`."""
    demonstrated_R: torch.Tensor
    """bool: whether somebody wrote the token."""
    group_S: torch.Tensor
    """int64: which group of the step the sequence belongs to."""
    lengths: tuple[int, ...]
    """Length S: tokens of each sequence; they add up to N."""

    def to(self, device: torch.device) -> "Pack":
        """The same pack on a device. A GPU copies it from page-locked memory when it comes to it; nobody waits."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "lengths"}
        if device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def share_out(examples: Sequence[Example], ranks: int, micro_batch_tokens: int) -> list[list[list[Example]]]:
    """For each rank its packs, as many for each, so few that they fit and all of nearly the same size.

    ZeRO 2 and 3 wait for all ranks in every pack, so what counts is that the packs of one turn are equal: they
    are neighbours by size. A rank that lacks a pack in the last turn gets an empty one.

    Args:
        examples: of one update.
        ranks: how many share the work.
        micro_batch_tokens: most tokens of a pack; a longer sequence gets a pack of its own.

    Returns:
        Indexed by rank, then by turn.
    """
    return share_out_together([(example,) for example in examples], ranks, micro_batch_tokens)


def share_out_together(groups: Sequence[Together], ranks: int, micro_batch_tokens: int) -> list[list[list[Example]]]:
    """As :func:`share_out`, but the examples of a group come into one pack, however long they are together."""
    packs = sorted(_fit(groups, ranks, micro_batch_tokens), key=_tokens, reverse=True)
    flat = [[example for group in pack for example in group] for pack in packs]
    return [flat[rank::ranks] for rank in range(ranks)]


def _fit(groups: Sequence[Together], ranks: int, micro_batch_tokens: int) -> list[list[Together]]:
    """As few packs as fit, a multiple of the number of ranks."""
    alone = [group for group in groups if _tokens([group]) >= micro_batch_tokens]
    rest = _tokens(groups) - _tokens(alone)
    turns = max(1, math.ceil((len(alone) + math.ceil(rest / micro_batch_tokens)) / ranks))
    while True:
        packs = balance(groups, turns * ranks)
        if all(_tokens(pack) <= micro_batch_tokens or len(pack) == 1 for pack in packs):
            return packs
        turns += 1


def balance(groups: Sequence[Together], parts: int) -> list[list[Together]]:
    """Divides groups of examples into parts of nearly equal tokens, some empty if there are too few.

    The largest differencing method of Karmarkar and Karp (1982): begin with a division of each group alone,
    and join the two most uneven divisions, the largest part of one with the smallest of the other, until one
    is left. Ties are broken by order, so that a replay divides alike.
    """
    heap = []
    for number, group in enumerate(groups):
        tokens = _tokens([group])
        heap.append((-tokens, number, [(tokens, [group])]))
    heapq.heapify(heap)
    for number in range(len(heap), 2 * len(heap) - 1):
        division = _join(heapq.heappop(heap)[2], heapq.heappop(heap)[2], parts)
        smallest = division[-1][0] if len(division) == parts else 0
        heapq.heappush(heap, (smallest - division[0][0], number, division))
    packs = [part for _, part in heap[0][2]] if heap else []
    return packs + [[] for _ in range(parts - len(packs))]


def _join(one: list[_Part], other: list[_Part], parts: int) -> list[_Part]:
    """The largest of the one with the smallest of the other; those that are empty are not in the lists."""
    beyond = max(0, len(one) + len(other) - parts)
    alone_of_one, alone_of_other = len(one) - beyond, len(other) - beyond
    pairs = zip(one[alone_of_one:], reversed(other[alone_of_other:]), strict=True)
    joined = [(tokens + more, part + added) for (tokens, part), (more, added) in pairs]
    return sorted(one[:alone_of_one] + other[:alone_of_other] + joined, key=lambda part: -part[0])


def _tokens(groups: Sequence[Together]) -> int:
    return sum(len(example.token_ids) for group in groups for example in group)


def to_pack(examples: Sequence[Example]) -> Pack:
    """Lays sequences one after the other.

    An empty pack becomes two tokens of which one is trained with advantage and weight 0: it takes part
    in every collective and adds nothing.
    """
    examples = examples or [_NOTHING]
    tokens: list[int] = []
    positions: list[int] = []
    index: list[int] = []
    targets: list[int] = []
    behaviour: list[float] = []
    advantages: list[float] = []
    weights: list[float] = []
    sequences: list[int] = []
    for number, example in enumerate(examples):
        start = len(tokens) + example.prompt_tokens
        tokens += example.token_ids
        positions += range(len(example.token_ids))
        own = [place for place, trained in enumerate(example.mask) if trained]
        index += [start + place - 1 for place in own]
        targets += [example.token_ids[example.prompt_tokens + place] for place in own]
        behaviour += [example.behaviour_logprobs[place] for place in own]
        advantages += [example.advantage] * len(own)
        weights += [example.weight] * len(own)
        sequences += [number] * len(own)
    return Pack(
        token_ids_N=torch.tensor(tokens),
        position_ids_N=torch.tensor(positions),
        index_R=torch.tensor(index),
        target_R=torch.tensor(targets),
        behaviour_R=torch.tensor(behaviour, dtype=torch.float32),
        advantages_R=torch.tensor(advantages, dtype=torch.float32),
        weights_R=torch.tensor(weights, dtype=torch.float32),
        sequence_R=torch.tensor(sequences),
        as_given_R=torch.tensor([examples[number].as_given for number in sequences], dtype=torch.bool),
        demonstrated_R=torch.tensor([examples[number].demonstrated for number in sequences], dtype=torch.bool),
        group_S=torch.tensor([example.group for example in examples]),
        lengths=tuple(len(example.token_ids) for example in examples),
    )
