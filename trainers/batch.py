"""From groups to packed forward passes without padding.

    groups ──► examples (advantage, mask) ──► shares of equal work, one a rank ──► packs of at most
    ``micro_batch_tokens``

Sequences lie one after the other in a pack. Each starts again at position 0, which is how the
model's attention finds the boundaries: no token sees another sequence.

Shape suffixes: N tokens of a pack, R trained response tokens of a pack.
"""
# ruff: noqa: N815 - the suffixes are the shapes

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from schemas.trajectories import Sample
from trainers.advantages import normalise
from trainers.masks import trained_mask


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as it is trained. P prompt tokens, T response tokens."""

    token_ids: tuple[int, ...]
    """Length P + T."""
    prompt_tokens: int
    """P."""
    behaviour_logprobs: tuple[float, ...]
    """Length T."""
    mask: tuple[bool, ...]
    """Length T: whether the token is trained."""
    advantage: float

    @property
    def trained_tokens(self) -> int:
        """How many tokens of the mask are set."""
        return sum(self.mask)


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

    def to(self, device: torch.device) -> "Pack":
        """The same pack on a device."""
        return Pack(*(getattr(self, name).to(device) for name in self.__slots__))


def to_examples(groups: Sequence[Sequence[Sample]], too_old: Collection[int] = ()) -> list[Example]:
    """The samples that can be trained, with their advantages.

    Left out are those without a reward, and those of which no token is trained. A sample that is left
    out, or trained in part, still counts in full for the advantages of its group.

    Args:
        groups: each the samples of one prompt.
        too_old: weight versions whose tokens are not trained.
    """
    examples = []
    for samples in groups:
        advantages = normalise([sample.reward for sample in samples])
        for sample, advantage in zip(samples, advantages, strict=True):
            mask = trained_mask(sample, too_old)
            if advantage is not None and any(mask):
                examples.append(_to_example(sample, mask, advantage))
    return examples


def _to_example(sample: Sample, mask: Sequence[bool], advantage: float) -> Example:
    return Example(
        token_ids=(*sample.prompt_token_ids, *sample.response_token_ids),
        prompt_tokens=len(sample.prompt_token_ids),
        behaviour_logprobs=tuple(sample.response_logprobs),
        mask=tuple(mask),
        advantage=advantage,
    )


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

    An empty pack becomes two tokens of which one is trained with advantage 0: it takes part in
    every collective and adds nothing.
    """
    examples = examples or [Example((0, 0), 1, (0.0,), (True,), 0.0)]
    tokens: list[int] = []
    positions: list[int] = []
    index: list[int] = []
    targets: list[int] = []
    behaviour: list[float] = []
    advantages: list[float] = []
    for example in examples:
        start = len(tokens) + example.prompt_tokens
        tokens += example.token_ids
        positions += range(len(example.token_ids))
        own = [place for place, trained in enumerate(example.mask) if trained]
        index += [start + place - 1 for place in own]
        targets += [example.token_ids[example.prompt_tokens + place] for place in own]
        behaviour += [example.behaviour_logprobs[place] for place in own]
        advantages += [example.advantage] * len(own)
    return Pack(
        token_ids_N=torch.tensor(tokens),
        position_ids_N=torch.tensor(positions),
        index_R=torch.tensor(index),
        target_R=torch.tensor(targets),
        behaviour_R=torch.tensor(behaviour, dtype=torch.float32),
        advantages_R=torch.tensor(advantages, dtype=torch.float32),
    )
