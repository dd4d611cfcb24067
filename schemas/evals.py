"""Records of ``{run}.evals``: written by evaluations, read by people, reports and ``asyncflow export``."""

from collections.abc import Iterable
from typing import Final

from pydantic import Field

from schemas.records import Instant, Record, now

ALL_TASKS: Final = "*"
"""The task of a result over all tasks of an evaluation, where there are several."""
MEAN_REWARD: Final = "mean_reward"


class EvalResult(Record):
    """One figure of one weight version on one task.

    Example: ``{"schema": 1, "version": 12, "task": "sums", "metric": "mean_reward", "value": 0.81, "samples": 64,
    "temperature": 0.0, "evaluation": "held-out", "version_max": 12, "prompts": 64, "prompts_sha256": "0f…",
    "unanswered": 0, "null_rewards": 0, "standard_error": 0.049, "best": true,
    "at": "2026-01-31T12:00:00.000Z"}``.
    """

    version: int = Field(ge=0)
    """The oldest that produced a token of the answers; 0 stands for the base model before any announcement."""
    task: str
    metric: str
    """``mean_reward``, or ``pass@k``: the probability that one of k answers passes."""
    value: float
    samples: int = Field(ge=1)
    """Answers that the value was computed from."""
    temperature: float = Field(ge=0)
    """0 for greedy answers."""
    evaluation: str = "held-out"
    """Name of the evaluation."""
    version_max: int | None = Field(default=None, ge=0)
    """The newest version that produced a token; null if that is not known. The same as ``version`` where the
    answers are all of one version."""
    prompts: int | None = Field(default=None, ge=1)
    """That were asked; null if that is not known."""
    prompts_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Of the records of the prompts: only results on the same ones are compared."""
    unanswered: int = Field(default=0, ge=0)
    """Prompts that no worker answered."""
    null_rewards: int = Field(default=0, ge=0)
    """Answers whose reward could not be computed: they are not part of the value."""
    standard_error: float | None = Field(default=None, ge=0)
    """Of the value, as of a mean over prompts; null for fewer than two prompts."""
    best: bool = False
    """Whether the version was the best one of its evaluation when the result was written."""
    at: Instant = Field(default_factory=now)

    @property
    def is_exact(self) -> bool:
        """Whether all answers are by one version."""
        return self.version == self.version_max

    @property
    def decides(self) -> bool:
        """Whether results of its kind decide which version is the best: greedy answers to all prompts."""
        return self.metric == MEAN_REWARD and self.temperature == 0

    def beats(self, best: "EvalResult | None") -> bool:
        """Whether its version takes the place of the best one so far.

        Not by answers of several versions, and not by leaving out what could not be scored.
        """
        if not (self.decides and self.is_exact):
            return False
        comparable = best is not None and best.prompts_sha256 == self.prompts_sha256
        return not comparable or best is None or (self.value > best.value and self.samples >= best.samples)

    def marked(self, best: "EvalResult | None") -> "EvalResult":
        """The same, with the mark if it beats the best one so far."""
        return self.model_copy(update={"best": self.beats(best)})


def best_of(results: Iterable[EvalResult], evaluation: str) -> EvalResult | None:
    """The newest result of an evaluation that is marked as the best; null if none is."""
    marked = [result for result in results if result.best and result.evaluation == evaluation]
    return marked[-1] if marked else None
