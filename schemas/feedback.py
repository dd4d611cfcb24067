"""Records of ``{run}.feedback``: written by people and programs, read by the feedback pipeline."""

from typing import Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from schemas.identity import GroupId, RolloutId
from schemas.limits import MAX_FEEDBACK_BYTES
from schemas.records import Instant, Record, now

FeedbackKind = Literal["score", "thumb", "preference", "correction", "retract"]
Channel = Literal["rating", "preference", "correction"]
"""A user has one vote in each for an answer; scores and thumbs are one channel."""

_CHANNELS: Final[dict[FeedbackKind, Channel]] = {
    "score": "rating", "thumb": "rating", "preference": "preference", "correction": "correction",
}  # fmt: skip


class Feedback(Record):
    """A judgement on one answer; the record's key is the rollout id.

    Of one user's judgements on one answer the newest ``at`` holds, in each channel; ``retract`` withdraws all.

    Example::

        {"schema": 1, "feedback_id": "f-1", "rollout_id": "demo/0/38/3", "kind": "thumb", "value": 1.0,
         "user": "ann", "at": "2026-01-31T12:00:00.000Z", "receipt": "…"}
    """

    model_config = ConfigDict(extra="forbid")
    max_bytes: ClassVar[int | None] = MAX_FEEDBACK_BYTES

    feedback_id: str = Field(min_length=1, max_length=256)
    """The sender's name of this judgement; a record that is sent again has the same."""
    rollout_id: str
    """``{run}/{prompts partition}/{offset}/{sample index}``."""
    kind: FeedbackKind
    value: float | str | None = None
    """A score in [-1, 1]; a thumb of -1 or 1; the id of the answer of the same group that is better than this one;
    the corrected text, not empty; null to retract."""
    user: str = Field(min_length=1, max_length=256)
    at: Instant = Field(default_factory=now)
    receipt: str | None = Field(default=None, max_length=512)
    """Proof that the sender saw the answer; null where the pipeline asks for none."""

    @field_validator("rollout_id")
    @classmethod
    def _is_rollout_id(cls, text: str) -> str:
        RolloutId.parse(text)
        return text

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        expected = _EXPECTED[self.kind]
        if not _fits(self):
            raise ValueError(f"value {str(self.value)[:80]!r} of kind {self.kind!r}, expected {expected}")
        return self

    @property
    def rollout(self) -> RolloutId:
        """The answer that it judges."""
        return RolloutId.parse(self.rollout_id)

    @property
    def group(self) -> GroupId:
        """The group of the answer."""
        return self.rollout.group

    @property
    def channel(self) -> Channel | None:
        """Null for a retraction, which concerns all."""
        return _CHANNELS.get(self.kind)


_EXPECTED: Final[dict[FeedbackKind, str]] = {
    "score": "a number from -1 to 1",
    "thumb": "-1 or 1",
    "preference": "the rollout id of another answer of the same group",
    "correction": "a text that is not empty",
    "retract": "null",
}


def _fits(given: Feedback) -> bool:
    value: Any = given.value
    if given.kind == "retract":
        return value is None
    if given.kind in ("score", "thumb"):
        return isinstance(value, float) and (-1 <= value <= 1 if given.kind == "score" else value in (-1.0, 1.0))
    if not isinstance(value, str) or not value:
        return False
    return given.kind == "correction" or _is_neighbour(value, given.rollout)


def _is_neighbour(text: str, rollout: RolloutId) -> bool:
    other = RolloutId.parse(text)
    return other != rollout and other[:3] == rollout[:3]
