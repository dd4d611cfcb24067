"""Records of ``{run}.evals``: written by evaluations, read by people and reports."""

from pydantic import Field

from schemas.records import Instant, Record, now


class EvalResult(Record):
    """Held-out accuracy of one weight version on one task.

    Example: ``{"schema": 1, "version": 12, "task": "sums", "metric": "accuracy", "value": 0.81,
    "samples": 64, "temperature": 0.0, "at": "2026-01-31T12:00:00.000Z"}``.
    """

    version: int = Field(ge=0)
    """0 stands for the base model before any announcement."""
    task: str
    metric: str
    value: float
    samples: int = Field(ge=1)
    """Answers that the value is the mean of."""
    temperature: float = Field(ge=0)
    """0 for greedy answers."""
    at: Instant = Field(default_factory=now)
