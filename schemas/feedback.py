"""Records of ``{run}.feedback``: written by people and programs, read by the feedback pipeline."""

from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from schemas.identity import RolloutId
from schemas.records import Instant, Record, now


class Feedback(Record):
    """A judgement on one answer. The newest ``at`` of a ``feedback_id`` wins; the key is the rollout id.

    Example::

        {"schema": 1, "feedback_id": "f-1", "rollout_id": "demo/0/38/3", "kind": "thumb", "value": 1.0,
         "user": "ann", "at": "2026-01-31T12:00:00.000Z", "receipt": "…"}
    """

    model_config = ConfigDict(extra="forbid")

    feedback_id: str = Field(min_length=1, max_length=256)
    rollout_id: str
    """``{run}/{prompts partition}/{offset}/{sample index}``."""
    kind: Literal["score", "thumb", "preference", "correction", "retract"]
    value: float | str | None = None
    """A score in [-1, 1], a thumb of -1 or 1, the preferred rollout id, or the corrected text; null
    to retract."""
    user: str = Field(min_length=1, max_length=256)
    at: Instant = Field(default_factory=now)
    receipt: str | None = None
    """Proof that the sender saw the answer; null where the pipeline asks for none."""

    @field_validator("rollout_id")
    @classmethod
    def _is_rollout_id(cls, text: str) -> str:
        RolloutId.parse(text)
        return text
