"""From groups to what is trained of them.

    groups ──► examples: advantage, mask, and how much each of their tokens weighs in the step's loss

Packing is next: :mod:`trainers.packing`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

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
    weight: float = 0.0
    """What each trained token counts in the loss of the step, see :func:`weigh`."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens of the mask are set."""
        return sum(self.mask)


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


def weigh(examples: Sequence[Example]) -> list[Example]:
    """The examples with weights that make the loss of a step the mean over its trained tokens (token mean)."""
    tokens = sum(example.trained_tokens for example in examples)
    return [replace(example, weight=1.0 / tokens) for example in examples]
