"""``summary.json``: a finished run in figures."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from pydantic import BaseModel

from pipelines.audit import Verdict
from pipelines.log import RunLog
from schemas.ledger import surviving_steps

_STEPS_COMPARED = 3


class Summary(BaseModel):
    """What a run achieved. Counts are of the surviving line."""

    reward_first3: float
    """Mean reward of the first three steps, over all groups that came in for them."""
    reward_last3: float
    """Mean reward of the last three steps."""
    heldout_before: float
    """Mean reward of greedy answers to held-out prompts, by the weights that training started from."""
    heldout_after: float
    """The same by the weights of the last step."""
    steps: int
    versions_published: int
    """Announced weight versions, the initial ones included."""
    updates_in_flight: int
    """Versions that took over in the middle of at least one answer, by the answers' spans."""
    groups_trained: int
    groups_dropped: dict[str, int]
    """By reason."""
    dead_letters: int
    staleness_max: int
    """Weight versions."""
    tokens_generated: int
    """Response tokens in the trajectories topic."""
    seconds_to_first_step: float
    """From the start of the processes to the first optimizer step."""
    seconds_total: float
    """From the start of the processes to the end of the last evaluation."""
    audit: Verdict


def summarise(  # noqa: PLR0913
    log: RunLog,
    verdict: Verdict,
    *,
    held_out: tuple[float, float],
    updates_in_flight: int,
    tokens_generated: int,
    seconds_to_first_step: float,
    seconds_total: float,
) -> Summary:
    """Puts the figures of a run together; ``held_out`` is before and after."""
    line = surviving_steps(log.ledger)
    rewards = [step.metrics["reward_mean"] for step in line if "reward_mean" in step.metrics]
    dropped: Counter[str] = Counter(group.reason for step in line for group in step.dropped)
    return Summary(
        reward_first3=_mean(rewards[:_STEPS_COMPARED]),
        reward_last3=_mean(rewards[-_STEPS_COMPARED:]),
        heldout_before=held_out[0],
        heldout_after=held_out[1],
        steps=len(line),
        versions_published=len(log.weights),
        updates_in_flight=updates_in_flight,
        groups_trained=sum(len(step.trained) for step in line),
        groups_dropped=dict(dropped),
        dead_letters=len(log.dead_letters),
        staleness_max=verdict.staleness_max,
        tokens_generated=tokens_generated,
        seconds_to_first_step=round(seconds_to_first_step, 1),
        seconds_total=round(seconds_total, 1),
        audit=verdict,
    )


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), 4) if values else 0.0
