"""What a run does and what is wrong with it, in sentences: pure functions of what was seen.

    history of Snapshots ─► explain() ─► (Sentence, …): faults first, then what it waits for, then what to know

To add one: a function from the history to sentences, in ``_FINDERS``, and a literal case in
``tests/unit/pipelines/top/test_explain.py``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal

from pipelines.top.state import Learner, Process, Snapshot
from pipelines.words import counted, duration, listed, printable

Level = Literal["fault", "wait", "note"]
History = Sequence[Snapshot]
"""The newest last; at least one."""

_SILENT_S: Final = 3.0
"""An endpoint is read every second."""
_RECENT_S: Final = 120.0
"""How long something that happened once is told."""
_BEHIND_S: Final = 10.0
"""A worker takes a new version within seconds."""
_EXPECTED: Final = ("rollout", "learner", "unknown")
"""Whose silence is a fault from the start: what a stack serves, and what the user named."""
_EMPTY: Final = {
    "admission": "the next prompts are not admitted yet",
    "no_prompts": "there are no further prompts",
    "no_worker": "no worker is up",
    "back_pressure": "finished groups wait for their commit or for a judge",
}
"""Why places of the engine are empty, by ``transforms.generation.occupancy.State``."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing that a person should know now."""

    level: Level
    text: str


def explain(history: History) -> tuple[Sentence, ...]:
    """Everything that there is to say, the most pressing first."""
    found = [Sentence(each.level, printable(each.text)) for find in _FINDERS for each in find(history)]
    return tuple(sorted(found, key=lambda sentence: ("fault", "wait", "note").index(sentence.level)))


# ---------------------------------------------------------------------- faults


def _broker(history: History) -> Iterator[Sentence]:
    now = history[-1]
    if now.broker_silent_s:
        yield Sentence("fault", f"broker {now.broker} away since {duration(now.broker_silent_s)}: "
                                "what is shown of the topics is from before")  # fmt: skip


def _endpoints(history: History) -> Iterator[Sentence]:
    now = history[-1]
    for endpoint in now.endpoints if now.is_live and not _is_done(now.learner) else ():
        where = f"{endpoint.process} does not answer at {endpoint.url}"
        if endpoint.silent_s is None and endpoint.process in _EXPECTED:
            who = "nothing" if endpoint.process == "unknown" else endpoint.process
            yield Sentence("fault", f"{who} has {'' if who == 'nothing' else 'not '}answered yet at {endpoint.url}")
        elif endpoint.silent_s is not None and endpoint.silent_s > _SILENT_S and endpoint.process != "worker":
            yield Sentence("fault", f"{where} since {duration(endpoint.silent_s)}")


def _restart(history: History) -> Iterator[Sentence]:
    now, learner = history[-1], history[-1].learner
    if learner.generation < 2 or learner.started_at is None or now.at - learner.started_at > _RECENT_S:
        return
    died = "died and was" if learner.lost_steps else "was"
    again = f", {counted(learner.lost_steps, 'step')} to do again" if learner.lost_steps else ""
    yield Sentence(
        "fault" if learner.lost_steps else "note",
        f"learner {died} started again {duration(now.at - learner.started_at)} ago "
        f"(generation {learner.generation}): goes on from step {learner.continues}{again}",
    )


def _workers(history: History) -> Iterator[Sentence]:
    now = history[-1]
    if not now.is_live or _is_done(now.learner) or now.broker_silent_s:
        return
    silent = [worker for worker in now.workers if worker.state == "silent"]
    if now.engine.workers_up is None and not now.workers and now.learner.generation:
        yield Sentence("fault", "no worker has announced itself yet: prompts pause")
    elif now.engine.workers_up == 0:
        since_s = _lasted_s(history, lambda each: each.engine.workers_up == 0)
        heard_s = min((worker.heard_s for worker in now.workers), default=0.0)
        yield Sentence("fault", f"no worker answers since {duration(max(since_s, heard_s))}: prompts pause")
    else:
        for worker in silent:
            yield Sentence("fault", f"worker {worker.url} is gone: not heard of since {duration(worker.heard_s)}")
    for worker in now.workers:
        if worker.state == "leaving":
            yield Sentence("note", f"worker {worker.url} left {duration(worker.heard_s)} ago")


def _versions(history: History) -> Iterator[Sentence]:
    now, learner = history[-1], history[-1].learner
    if learner.version_at is None or now.broker_silent_s or not now.is_live:
        return
    age_s = now.at - learner.version_at
    for worker in now.workers:
        if worker.state == "up" and worker.version < learner.version and age_s > _BEHIND_S:
            yield Sentence("fault", f"worker {worker.url} serves version {worker.version}, "
                                    f"{learner.version} was announced {duration(age_s)} ago")  # fmt: skip
        if (more := _more_refused(history, worker.url)) > 0:
            yield Sentence("fault", f"worker {worker.url} refused {counted(more, 'weight version')}: its log says why")


def _more_refused(history: History, url: str) -> int:
    now = history[-1].at
    seen = [worker.refused for each in history if now - each.at <= _RECENT_S
            for worker in each.workers if worker.url == url and worker.refused is not None]  # fmt: skip
    return seen[-1] - seen[0] if seen else 0


def _services(history: History) -> Iterator[Sentence]:
    for name in history[-1].engine.left_alone:
        since_s = _lasted_s(history, lambda each, name=name: name in each.engine.left_alone)  # type: ignore[misc]
        yield Sentence("fault", f"{name} is not asked since {duration(since_s)}: it failed, and groups wait for it")


def _gradients(history: History) -> Iterator[Sentence]:
    lost = history[-1].learner.dropped.get("nonfinite", 0)
    before = min((each.learner.dropped.get("nonfinite", 0) for each in _recent(history)), default=lost)
    if lost > before:
        yield Sentence(
            "fault", f"the gradient was not finite: {counted(lost - before, 'group')} dropped, no update made"
        )


# ------------------------------------------------------------------------ waits


def _waits(history: History) -> Iterator[Sentence]:
    now, learner = history[-1], history[-1].learner
    if now.broker_silent_s or (_is_away(now, "learner") and not _is_done(learner)):
        return  # whatever it was at, it is not now
    if not now.is_live:
        yield Sentence("wait", f"the run has ended after {counted(learner.step, 'step')}; this is its log")
    elif _is_done(learner):
        yield Sentence("wait", f"all {learner.steps} steps are done")
    elif learner.state == "starting":
        since_s = _lasted_s(history, lambda each: each.learner.state == "starting")
        yield Sentence("wait", f"learner starts since {duration(since_s)}: it reads model, checkpoint and log")
    elif learner.generation == 0:
        yield Sentence("wait", "no learner has started yet, so no prompt is admitted")
    elif learner.step < learner.continues + learner.lost_steps:
        yield Sentence("wait", f"learner does step {learner.step + 1} again, as the ledger has it")
    elif _trains(now):
        since_s = _since_s(history, _trains)
        yield Sentence("wait", f"learner trains step {learner.step + 1} since {duration(since_s)}")
    else:
        missing = max(1, (learner.need or 0) - learner.have)
        since_s = _since_s(history, lambda each: not _trains(each))
        yield Sentence("wait", f"learner waits for {counted(missing, 'group')} since {duration(since_s)}: {_why(now)}")


def _is_away(now: Snapshot, process: Process) -> bool:
    return any(each.process == process and (each.silent_s or 0.0) > _SILENT_S for each in now.endpoints)


def _trains(now: Snapshot) -> bool:
    if now.learner.state is not None:
        return now.learner.state == "training"
    return now.learner.need is not None and now.learner.have >= now.learner.need


def _why(now: Snapshot) -> str:
    """Why groups do not come: the nearest cause that a person could do something about."""
    unadmitted, in_flight = now.stage("prompts").waiting or 0, now.stage("in flight").waiting or 0
    if now.engine.workers_up == 0 or (now.engine.workers_up is None and not now.workers):
        return "no worker is up"
    if in_flight:
        return f"admission is open, {_engine(now)}"
    if not unadmitted:
        parked = int(now.learner.metrics.get("prompts_parked", 0))
        missing = (
            "no prompts are left, submit more" if now.stage("prompts").total else "there are no prompts, submit some"
        )
        return f"{counted(parked, 'group')} wait for feedback" if parked else missing
    return f"nothing is in flight and {counted(unadmitted, 'prompt')} are not admitted"


def _engine(now: Snapshot) -> str:
    in_flight = counted(now.stage("in flight").waiting or 0, "prompt")
    if now.engine.occupancy is None:
        return f"{in_flight} in flight"
    why = reason(now.engine.empty)
    return f"engine is at {now.engine.occupancy:.0%}{f' ({why})' if why else ''}, {in_flight} in flight"


def reason(empty: Mapping[str, float]) -> str:
    """The main reason why places of the engine are empty, in words; nothing if it is full."""
    if not empty:
        return ""
    name = max(empty, key=lambda each: empty[each])
    return _EMPTY.get(name, name)


# ------------------------------------------------------------------------ notes


def _dead_letters(history: History) -> Iterator[Sentence]:
    now = history[-1]
    if now.dead_letters:
        oldest = _recent(history)[0]
        grew = sum(now.dead_letters.values()) > sum(oldest.dead_letters.values())
        yield Sentence("fault" if grew else "note", f"dead letters: {listed(now.dead_letters)}")


def _drops(history: History) -> Iterator[Sentence]:
    now = history[-1]
    dropped, trained = sum(now.learner.dropped.values()), now.stage("trained").total
    if dropped > trained > 0:
        yield Sentence("note", f"more groups are dropped than trained: {listed(now.learner.dropped)}")


_FINDERS: Final[Sequence[Callable[[History], Iterable[Sentence]]]] = (
    _broker, _endpoints, _workers, _restart, _versions, _services, _gradients, _waits, _dead_letters, _drops,
)  # fmt: skip


# ------------------------------------------------------------------------ ages


def _is_done(learner: Learner) -> bool:
    return learner.steps is not None and learner.step >= learner.steps


def _recent(history: History) -> History:
    now = history[-1].at
    return [each for each in history if now - each.at <= _RECENT_S]


def _lasted_s(history: History, holds: Callable[[Snapshot], bool]) -> float:
    """For how long something has held without a break, as far as it was watched."""
    held = list(takewhile(holds, reversed(history)))
    return history[-1].at - held[-1].at if held else 0.0


def _since_s(history: History, holds: Callable[[Snapshot], bool]) -> float:
    """The same of a state of the learner, which may have begun before it was watched: with its newest step or start."""
    now, learner = history[-1], history[-1].learner
    began = max(learner.step_at or 0.0, learner.started_at or 0.0)
    before = [each.at for each in history if not holds(each)]
    return max(0.0, now.at - max([began, *before[-1:]]))
