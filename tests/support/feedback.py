"""Literal items of the feedback pipeline to vary in tests."""

from datetime import UTC, datetime

from schemas.feedback import Feedback
from schemas.identity import GroupId
from tests.support.samples import group
from transforms.feedback.items import Awaited, Judged, Source

GROUP = GroupId(0, 38)


def awaited(at_s=100.0, *, size=2, place=(0, 5), of_groups=1, decision=None, trace=None, **changes):
    """A group that waits for feedback, appended at a moment."""
    changes = {"reward": None, "reward_parts": {}, **changes}
    samples = group(*GROUP, size, **changes)
    return Awaited.of(Source(place, place[1], at_s), samples, of_groups=of_groups, decision=decision, trace=trace)


def judged(at_s, kind="thumb", value=1.0, *, user="ann", sample=0, offset=None, given_s=None, name=None):
    """A judgement that was appended at a moment, and given at the same or another one."""
    offset = int(at_s) if offset is None else offset
    feedback = Feedback(
        feedback_id=name or f"f-{offset}",
        rollout_id=f"demo/0/38/{sample}",
        kind=kind,
        value=value,
        user=user,
        at=datetime.fromtimestamp(at_s if given_s is None else given_s, UTC),
    )
    return Judged(Source((1, offset), offset, at_s), feedback)
