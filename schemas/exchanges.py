"""Records of ``{run}.exchanges``: written by gateways before they ask an engine, one a question.

The place of the record names the rollout: ``RolloutId(run, EXCHANGES + partition, offset, 0)``.
"""

from typing import Any

from pydantic import Field

from schemas.prompts import Message, Sampling
from schemas.records import Instant, Record, now


class Exchange(Record):
    """Somebody asked something.

    Example::

        {"schema": 1, "user": "ann", "task": "chat", "messages": [{"role": "user", "content": "What is 2+3?"}],
         "sampling": null, "metadata": {}, "at": "2026-01-31T12:00:00.000Z"}
    """

    user: str = Field(min_length=1, max_length=256)
    task: str = Field(default="chat", min_length=1, max_length=256)
    """For grouping figures, and for the running baseline that its rewards are compared with."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation so far."""
    sampling: Sampling | None = None
    """Null for the run's configured sampling."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Anything; not read by this project."""
    at: Instant = Field(default_factory=now)
