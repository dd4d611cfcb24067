"""Records of ``{run}.outcomes``: written by the feedback pipeline, read by it at its start, by gateways and people.

They are the pipeline's memory: what stands here has happened, and what does not is done after a restart. Every record
of the pending and feedback topics is accounted for in exactly one of them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.feedback import Channel
from schemas.identity import GroupId
from schemas.records import Instant, Record, now

Fate = Literal[
    "used", "replaced", "duplicate", "retracted", "retraction", "corrected", "no_change", "too_few", "too_late",
    "unknown", "held_out", "bad_receipt", "expired_receipt", "rate_limited", "malformed",
]  # fmt: skip
"""What became of one feedback record.

- ``used``: it is part of a reward that went to the learner.
- ``replaced``: a newer judgement of the same user took its place before that.
- ``duplicate``: it was sent before, under the same ``feedback_id`` and ``at``.
- ``retracted``: its user withdrew it before it was used; ``retraction``: it withdrew one.
- ``corrected``: it came after the rollout was trained and changed its reward: the difference went out by itself.
- ``no_change``: it came after that and changed nothing.
- ``too_few``: the answer had fewer raters than ``feedback.min_raters`` in the end.
- ``too_late``: the group had expired before.
- ``unknown``: no rollout of that name came in time.
- ``held_out``: of a user whose judgements only watch over the others'.
- ``bad_receipt``, ``expired_receipt``: it does not prove that the sender saw the answer.
- ``rate_limited``: its user sent more than ``feedback.user_rate_per_s`` allows.
- ``malformed``: no valid record; a dead letter tells more.
"""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class FeedbackFate(_Part):
    """One record of the feedback topic and its fate. Example: ``{"at": [0, 17], "fate": "used", "id": "f-1"}``."""

    at: tuple[int, int]
    """Partition and offset."""
    fate: Fate
    id: str = ""
    """Its ``feedback_id``; empty if it could not be read."""


class Vote(_Part):
    """A judgement that holds.

    Example: ``{"sample": 3, "user": "ann", "channel": "rating", "value": 1.0, "at": "2026-01-31T12:00:00.000Z",
    "id": "f-1", "place": [0, 17]}``.
    """

    sample: int = Field(ge=0)
    """Index of the answer in its group."""
    user: str
    channel: Channel
    value: float | str
    """As in the record; of a preference the index of the better answer."""
    at: Instant
    """When the user gave it; the newest holds."""
    id: str
    place: tuple[int, int]
    """Partition and offset of its record."""


class Outcome(Record):
    """What was decided about one group, or about feedback that belongs to none.

    Example::

        {"schema": 1, "kind": "joined", "group": [0, 38], "pending": [[1, 5]],
         "feedback": [{"at": [0, 17], "fate": "used", "id": "f-1"}], "contributions": [[0, 38]],
         "votes": [{"sample": 3, "user": "ann", "channel": "rating", "value": 1.0,
                    "at": "2026-01-31T12:00:00.000Z", "id": "f-1", "place": [0, 17]}],
         "rewards": {"3": 1.0}, "decided_at": "2026-01-31T12:00:10.000Z"}
    """

    kind: Literal["joined", "expired", "corrected", "refused"]
    """``joined``: the group went to the learner with its rewards. ``expired``: it ended without. ``corrected``: what
    came afterwards was dealt with. ``refused``: feedback that was used for no group."""
    group: GroupId | None = None
    """Null where ``feedback`` is of several."""
    pending: tuple[tuple[int, int], ...] = ()
    """Partition and offset of the group's record in the pending topic; further ones are duplicates of it."""
    feedback: tuple[FeedbackFate, ...] = ()
    """What this decision accounts for."""
    contributions: tuple[GroupId, ...] = ()
    """What went to the trajectories topic: the group itself, corrections and demonstrations."""
    votes: tuple[Vote, ...] = ()
    """All judgements that hold after it; empty unless ``joined`` or ``corrected``."""
    rewards: dict[int, float] = Field(default_factory=dict)
    """By index of the answer, all that were rated so far; what a later correction is the difference to."""
    decided_at: Instant = Field(default_factory=now)
    """By the clock of the topics."""
