"""Figures of the feedback pipeline, for Prometheus."""

from collections import Counter as Counted
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from schemas.outcomes import Outcome

FEEDBACK: Final = Counter("asyncflow_feedback_total", "Judgements, by what became of them.", ["fate"])
GROUPS: Final = Counter("asyncflow_feedback_groups_total", "Decisions about groups, by kind.", ["kind"])
CONTRIBUTIONS: Final = Counter("asyncflow_feedback_contributions_total", "Groups sent to the learner.")
CASES: Final = Gauge("asyncflow_feedback_cases", "Groups in the pipeline's state, as far as this process knows.")
COMMIT_SECONDS: Final = Histogram("asyncflow_feedback_commit_seconds", "One transaction.")
DRIFT: Final = Gauge(
    "asyncflow_feedback_drift", "Mean rating of users whose judgements are trained less that of those held out."
)


def count(outcome: Outcome) -> None:
    """Counts a decision that was committed."""
    if outcome.kind != "refused":
        GROUPS.labels(outcome.kind).inc()
    CONTRIBUTIONS.inc(len(outcome.contributions))
    for fate, judgements in Counted(each.fate for each in outcome.feedback).items():
        FEEDBACK.labels(fate).inc(judgements)
