"""The spans of a prompt that begin in one thread of the pool and end in another."""

import time
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from schemas import traces
from schemas.dead_letters import DeadLetter
from schemas.trajectories import Group
from transforms.generation.outcome import OutputRecord
from transforms.generation.request import PromptRecord

if TYPE_CHECKING:
    from transforms.generation.pool import Finished


class Committed(NamedTuple):
    """A prompt that is done with."""

    finished: "Finished"
    """What became of it."""
    record: OutputRecord
    """In which that was written."""
    handed_over_s: float | None
    """When its bundle ended, in seconds since 1970; null if it was committed without one."""


def record_queue(prompt: PromptRecord, taken_at: datetime) -> None:
    """From a prompt's writing, by its producer's clock, until it was taken, by this one."""
    if prompt.trace and prompt.trace.sampled:
        taken_s = taken_at.timestamp()
        began_s = min(prompt.written_at.timestamp(), taken_s)
        traces.record(traces.Span(traces.below(prompt.trace), "queue", began_s, taken_s))


def record_commits(committed: Iterable[Committed]) -> None:
    """From the end of a bundle until its transaction was committed; and all of each prompt, which ends with that."""
    now_s = time.time()
    for each in committed:
        if (trace := each.finished.trace) is None or not trace.sampled:
            continue
        if each.handed_over_s is not None:
            traces.record(traces.Span(traces.below(trace), "write", each.handed_over_s, now_s))
        began_s = min(each.finished.prompt_at.timestamp(), now_s)
        facts = _facts_of(each)
        fault = facts["outcome"] if each.record.topic.endswith(".dead-letters") else None
        traces.record(traces.Span(trace, "rollout", began_s, now_s, facts, fault=fault))


def _facts_of(committed: Committed) -> dict[str, Any]:
    outcome, record = committed.finished.outcome, committed.record
    if record.topic.endswith(".dead-letters"):
        letter = DeadLetter.decode(record.value)
        return {"group": str(letter.group), "outcome": letter.reason}
    assert isinstance(outcome, Group)
    return {
        "group": str(outcome.id),
        "task": outcome.prompt.task,
        "outcome": record.topic.rpartition(".")[2],
        "attempt": outcome.samples[0].attempt_id,
        "samples": len(outcome.samples),
    }
