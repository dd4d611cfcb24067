"""Records of ``{run}.dead-letters``: written by every stage, read by the learner (admission), the audit and people."""

import base64
import hashlib
from typing import Literal, Self

from pydantic import Field

from schemas.identity import GroupId
from schemas.limits import MAX_DEAD_LETTER_HEAD_BYTES
from schemas.records import Instant, Record, now

Stage = Literal["generate", "score", "assemble", "join", "learn"]


class DeadLetter(Record):
    """An input that could not be used, with the reason. The key is ``{topic}/{partition}/{offset}``.

    Example::

        {"schema": 1, "reason": "reward_timeout", "detail": "…", "topic": "demo.prompts", "partition": 0,
         "offset": 38, "sha256": "…", "head_base64": "…", "stage": "score", "at": "2026-01-31T12:00:00.000Z"}
    """

    reason: str
    """One word for counters."""
    detail: str
    """One sentence for people, at most 1,000 characters."""
    topic: str
    partition: int
    offset: int
    sha256: str
    """Of the whole offending value."""
    head_base64: str
    """Its first 4 KiB."""
    stage: Stage
    at: Instant = Field(default_factory=now)

    @classmethod
    def of(cls, stage: Stage, reason: str, detail: str, source: tuple[str, int, int], value: bytes) -> Self:
        """A dead letter for ``value``, found at ``source`` (topic, partition, offset)."""
        topic, partition, offset = source
        return cls(
            stage=stage,
            reason=reason,
            detail=detail[:1000],
            topic=topic,
            partition=partition,
            offset=offset,
            sha256=hashlib.sha256(value).hexdigest(),
            head_base64=base64.b64encode(value[:MAX_DEAD_LETTER_HEAD_BYTES]).decode(),
        )

    @property
    def group(self) -> GroupId:
        """The place of the offending record; that of the prompt for letters about prompts."""
        return GroupId(self.partition, self.offset)

    def key(self) -> bytes:
        """The record's key."""
        return f"{self.topic}/{self.partition}/{self.offset}".encode()
