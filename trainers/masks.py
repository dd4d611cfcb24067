"""Which tokens of a sample are trained."""

from collections.abc import Collection, Sequence
from itertools import pairwise

from schemas.trajectories import Sample


def trained_mask(sample: Sample, too_old: Collection[int]) -> Sequence[bool]:
    """Length T: True for tokens that the model chose under a version that is not ``too_old``.

    Feedback takes its time: its tokens are never too old by themselves.
    """
    if sample.purpose != "train" or not any(span.version in too_old for span in sample.weight_version_spans):
        return sample.loss_mask
    mask = list(sample.loss_mask)
    starts = (*(span.start for span in sample.weight_version_spans), len(mask))
    for span, (start, end) in zip(sample.weight_version_spans, pairwise(starts), strict=True):
        if span.version in too_old:
            mask[start:end] = [False] * (end - start)
    return mask
