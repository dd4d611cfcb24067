"""From examples to packed forward passes without padding, for every rank equal work.

    examples ──► shares of equal work, one a rank ──► packs of at most ``micro_batch_tokens`` ──► tensors

Sequences lie one after the other in a pack. Each starts again at position 0, which is how the
model's attention finds the boundaries: no token sees another sequence.

Shape suffixes: N tokens of a pack, R trained response tokens of a pack, S sequences of a pack.
"""
# ruff: noqa: N815 - the suffixes are the shapes

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from trainers.batch import Example

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
    """float32: what each token counts in the loss of the step; over all packs of all ranks they add up to 1."""
    sequence_R: torch.Tensor
    """int64, ascending: which sequence of the pack the token belongs to."""
    lengths: tuple[int, ...]
    """Length S: tokens of each sequence; they add up to N."""

    def to(self, device: torch.device) -> "Pack":
        """The same pack on a device."""
        tensors = {
            field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "lengths"
        }
        return replace(self, **tensors)


def share_out(examples: Sequence[Example], ranks: int, micro_batch_tokens: int) -> list[list[list[Example]]]:
    """For each rank its packs, as many for each.

    ZeRO 2 reduces gradients after every pack, so a rank that lacks one gets an empty one.
    """
    shares = [pack(share, micro_batch_tokens) for share in _balance(examples, ranks)]
    most = max(len(packs) for packs in shares)
    return [packs + [[]] * (most - len(packs)) for packs in shares]


def _balance(examples: Sequence[Example], ranks: int) -> list[list[Example]]:
    """Longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[Example]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for example in _longest_first(examples):
        rank = loads.index(min(loads))
        shares[rank].append(example)
        loads[rank] += len(example.token_ids)
    return shares


def pack(examples: Sequence[Example], micro_batch_tokens: int) -> list[list[Example]]:
    """Longest first, each into the first pack with room (first-fit decreasing)."""
    packs: list[list[Example]] = []
    room: list[int] = []
    for example in _longest_first(examples):
        tokens = len(example.token_ids)
        place = next((index for index, free in enumerate(room) if tokens <= free), None)
        if place is None:
            packs.append([example])
            room.append(micro_batch_tokens - tokens)
        else:
            packs[place].append(example)
            room[place] -= tokens
    return packs


def _longest_first(examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: -len(example.token_ids))


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
        lengths=tuple(len(example.token_ids) for example in examples),
    )
