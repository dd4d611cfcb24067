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

from schemas import traces
from schemas.ledger import StepEntry
from schemas.trace_context import TraceContext
from trainers.planner import Arrival


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step that has begun."""

    context: TraceContext | None
    """Null where nothing is traced."""
    began_s: float
    """In seconds since 1970."""
    arrivals: Sequence[Arrival]

    @classmethod
    def begin(cls, arrivals: Sequence[Arrival]) -> "StepTrace":
        """A step is recorded if one of its groups is: what happened to that would end in the log otherwise.

        Its trace has a new id each time: a step that did not commit never was.
        """
        context = traces.begin(uuid.uuid4().hex, None, "step")
        if context and any(arrival.trace.sampled for arrival in arrivals if arrival.trace):
            context = context._replace(sampled=True)
        return cls(context, time.time(), arrivals)

    def end(self, entry: StepEntry) -> None:
        """The step is committed."""
        if self.context is None:
            return
        ended_s = time.time()
        facts = {"step": entry.step, "generation": entry.generation, "version": entry.version}
        followed = [arrival for arrival in self.arrivals if arrival.trace]
        links = tuple(arrival.trace for arrival in followed if arrival.trace)
        fault = None if entry.trained else "nothing was trained"
        step = {**facts, "groups": len(entry.trained)}
        traces.record(traces.Span(self.context, "step", self.began_s, ended_s, step, links, fault))
        for arrival in followed:
            learn = {"group": str(arrival.group), **facts}
            own = traces.below(arrival.trace)
            traces.record(traces.Span(own, "learn", arrival.read_s, ended_s, learn, (self.context,), fault))
