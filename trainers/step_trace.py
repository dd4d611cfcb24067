"""The spans of a step, and of the groups that it trains.

    a group's trace    … rollout ──► learn ─ ─ ─link─ ─ ─┐
    a group's trace    … rollout ──► learn ─ ─ ─link─ ─ ─┤
    the step's trace                                     step ──► train, publish ──► load (workers), commit

A step belongs to many groups, and a span has one parent: so a step begins a trace of its own that is linked with all of
them, and each group's trace ends with a span of its own that is linked with the step.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas import traces
from schemas.identity import GroupId
from schemas.ledger import StepEntry
from schemas.trace_context import TraceContext
from trainers.planner import Arrival


class Followed(NamedTuple):
    """A group that has a trace. Its samples are not kept: they can be many, and a step is told after its commit."""

    group: GroupId
    trace: TraceContext
    read_s: float
    """In seconds since 1970."""


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step that has begun."""

    context: TraceContext | None
    """Null where nothing is traced."""
    began_s: float
    """In seconds since 1970."""
    followed: tuple[Followed, ...]

    @classmethod
    def begin(cls, arrivals: Sequence[Arrival]) -> "StepTrace":
        """A step is recorded if one of its groups is: what happened to that would end in the log otherwise.

        Without such a group it is with the probability ``tracing.ratio``. Its trace has a new id each time: a step that
        did not commit never was.
        """
        context = traces.begin(uuid.uuid4().hex, None, "step")
        if context is None:
            return cls(None, time.time(), ())
        followed = tuple(Followed(each.group, each.trace, each.read_s) for each in arrivals if each.trace)
        if any(each.trace.sampled for each in followed):
            context = context._replace(sampled=True)
        return cls(context, time.time(), followed)

    def end(self, entry: StepEntry) -> None:
        """The step is committed."""
        if self.context is None:
            return
        ended_s = time.time()
        facts = {"step": entry.step, "generation": entry.generation, "version": entry.version}
        links = tuple(each.trace for each in self.followed)
        fault = None if entry.trained else "nothing was trained"
        step = {**facts, "groups": len(entry.trained)}
        traces.record(traces.Span(self.context, "step", self.began_s, ended_s, step, links, fault))
        for each in self.followed:
            learn = {"group": str(each.group), **facts}
            own = traces.below(each.trace)
            traces.record(traces.Span(own, "learn", each.read_s, ended_s, learn, (self.context,), fault))
