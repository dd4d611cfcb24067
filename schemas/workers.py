"""Records of ``{run}.workers``: written by each worker while it serves, read by the rollout pipeline."""

from typing import Literal

from pydantic import Field

from schemas.records import Instant, Record, now


class WorkerEntry(Record):
    """A worker says that it is there, every few seconds; the newest record of a ``url`` holds.

    Whoever may write to the topic decides which servers are sent prompts.

    Example::

        {"schema": 1, "url": "http://10.0.0.7:8000", "state": "up", "version": 12, "max_num_seqs": 64,
         "at": "2026-01-31T12:00:00.000Z"}
    """

    url: str = Field(pattern=r"^https?://[A-Za-z0-9.\-_\[\]:]+$", max_length=300)
    """Where the pipeline reaches it: scheme, host and port; also the record's key."""
    state: Literal["up", "leaving"]
    """``leaving`` once, before it stops: no more requests are sent, those in flight may still be answered."""
    version: int = Field(ge=0, lt=1 << 63)
    """The weight version that it serves."""
    max_num_seqs: int = Field(ge=1, lt=1 << 31)
    """Sequences that its engine computes at once."""
    at: Instant = Field(default_factory=now)
