"""From groups to what is trained of them.

    groups, their advantages ──► examples: the samples of which a token is trained

Next are weights of tokens, :mod:`trainers.aggregation`, and packing, :mod:`trainers.packing`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from schemas.trajectories import Sample
from trainers.masks import trained_mask
from trainers.purposes import RATED


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
    """With a value head the reward, of which :mod:`trainers.returns` makes advantages of tokens; a scorer's too."""
    weight: float = 0.0
    """What each trained token counts in the loss, see :func:`trainers.aggregation.weigh`."""
    group: int = 0
    """Which group of the step it belongs to."""
    as_given: bool = False
    """Whether the advantage stands as it is, of a correction or demonstration: no value head and no divergence is
    taken off it."""
    demonstrated: bool = False
    """Whether somebody wrote it: no policy drew its tokens."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens of the mask are set."""
        return sum(self.mask)


def to_examples(
    groups: Sequence[Sequence[Sample]], advantages: Sequence[Sequence[float | None]], too_old: Collection[int] = ()
) -> list[Example]:
    """The samples that can be trained.

    Left out are those without a reward, and those of which no token is trained. A sample that is left
    out, or trained in part, still counted in full for the advantages of its group.

    Args:
        groups: each the samples of one prompt.
        advantages: theirs, as :class:`trainers.advantages.Advantages` gives them.
        too_old: weight versions whose tokens are not trained.
    """
    examples = []
    for number, (samples, theirs) in enumerate(zip(groups, advantages, strict=True)):
        for sample, advantage in zip(samples, theirs, strict=True):
            mask = trained_mask(sample, too_old)
            if advantage is not None and any(mask):
                examples.append(_to_example(sample, mask, advantage, number))
    return examples


def _to_example(sample: Sample, mask: Sequence[bool], advantage: float, group: int) -> Example:
    return Example(
        token_ids=(*sample.prompt_token_ids, *sample.response_token_ids),
        prompt_tokens=len(sample.prompt_token_ids),
        behaviour_logprobs=tuple(sample.response_logprobs),
        mask=tuple(mask),
        advantage=advantage,
        group=group,
        as_given=sample.purpose not in RATED,
        demonstrated=sample.purpose == "demonstration",
    )
