"""How feedback becomes rewards: the section ``feedback`` of the configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.sections import Host, Positive, Section

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class FeedbackConfig(Section):
    """The feedback pipeline. Times are those of the topics: when the broker appended a record."""

    settle_s: Annotated[float, Field(ge=0)] = 10.0
    """How long after its first judgement a rollout is held back, so that it can still be edited or withdrawn."""
    wait_s: Seconds = 3600.0
    """How long a rollout waits for enough feedback before it expires."""
    unknown_after_s: Seconds = 600.0
    """How long feedback waits for its rollout."""
    correction_s: Seconds = 3600.0
    """How long after a rollout was decided feedback on it still counts, as a correction."""
    min_raters: Positive = 1
    """Users who have to judge an answer before it has a reward."""
    aggregate: Literal["mean", "median", "majority"] = "mean"
    """What several raters make of an answer: ``majority`` is -1, 0 or 1 by the signs of their ratings."""
    corrections: Literal["similarity", "demonstration"] = "demonstration"
    """A corrected text rates the answer by how alike the two are (chrF, from -1 to 1), unless its user rated it
    too; with ``demonstration`` the text is also trained as an answer of its own."""
    demonstration_weight: Annotated[float, Field(gt=0)] = 1.0
    """What a demonstration counts in the loss, beside an advantage of 1."""
    key_file: str = ""
    """File with the key of receipts; empty accepts feedback without."""
    receipt_s: Seconds = 86_400.0
    """How long a receipt counts that a gateway issues."""
    user_rate_per_s: Annotated[float, Field(gt=0)] = 5.0
    """Judgements of one user that count, on average; more are refused."""
    user_burst: Positive = 100
    """Judgements of one user that count at once."""
    held_out_share: Share = 0.0
    """Share of the users whose judgements are not trained but watch over the others'; chosen by their names."""
    drift_window: Positive = 200
    """Ratings of either kind that the drift alarm compares."""
    drift_alarm: Annotated[float, Field(gt=0)] = 0.5
    """Difference between the mean rating of the trained and of the held-out users at which the alarm is raised."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the Prometheus endpoint; 0 for none."""
    metrics_host: Host = "127.0.0.1"
    """Address that the Prometheus endpoint listens on. Whoever reaches it reads figures, and needs no key."""

    @model_validator(mode="after")
    def _settles_before_it_expires(self) -> Self:
        if self.settle_s >= self.wait_s:
            raise ValueError(
                f"settle_s = {self.settle_s} is not below wait_s = {self.wait_s}: a rollout would expire while its "
                "feedback is held back"
            )
        return self
