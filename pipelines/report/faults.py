"""What went wrong in a run, in words: each fault names its place and its consequence.

ledger ──► restarts, skipped steps        steps ──► stalls        weights ──► versions announced again
dead letters, drops, null rewards ──► by reason        audit ──► broken promises        logs ──► errors, last words
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Final, Literal

from pipelines.audit import Verdict
from pipelines.report.flow import Flow, Timeline
from pipelines.report.gather import Gathered
from pipelines.report.logs import Said
from pipelines.words import counted
from schemas.dead_letters import DeadLetter
from schemas.ledger import CheckpointEntry, LedgerEntry, StartEntry, StepEntry
from schemas.weights import WeightVersion

_STALL_FACTOR: Final = 8
_STALL_S: Final = 10.0
_STALLS_SHOWN: Final = 10
_ALARMING_DROPS: Final = ("duplicate", "unknown_version", "bad_weights", "nonfinite", "quarantined")
_PARTS: Final = {
    "seconds_wait": "the learner waited for groups",
    "seconds_train": "the learner trained",
    "seconds_held": "the learner waited for the step before to be committed",
    "seconds_publish": "the learner published weights",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that went wrong."""

    kind: Literal["restart", "stall", "skipped", "weights", "dead letter", "drop", "reward", "record", "log", "audit"]
    text: str
    """What happened, in one line."""
    detail: str = ""
    """Where, and what came of it."""
    at: datetime | None = None
    """When, as far as that is one moment."""
    is_grave: bool = False
    """Whether a promise of the log is broken."""


def find_faults(gathered: Gathered, verdict: Verdict, line: Sequence[StepEntry]) -> list[Fault]:
    """The faults of a run: broken promises first, then in the order of time, then what has no one moment."""
    log = gathered.log
    found = [
        *broken_promises(verdict),
        *restarts(log.ledger),
        *skipped_steps(log.ledger),
        *announced_again(log.weights),
        *stalls(line, gathered.flow.timeline),
        *dead_letters(log.dead_letters),
        *alarming_drops(line),
        *null_rewards(gathered.flow),
        *unreadable(log.unreadable, verdict),
        *said(gathered.said),
    ]
    return sorted(
        found, key=lambda fault: (not fault.is_grave, fault.at is None, fault.at.timestamp() if fault.at else 0)
    )


def broken_promises(verdict: Verdict) -> Iterator[Fault]:
    """What the audit found."""
    for words in verdict.faults:
        yield Fault("audit", f"a promise is broken: {words}", is_grave=True)


def restarts(ledger: Iterable[LedgerEntry]) -> Iterator[Fault]:
    """Starts of the learner but the first: where it went on, what left the line, how long no step was made.

    A learner that is asked to end writes a checkpoint at its last step; one that did not was killed, crashed, or was
    fenced by the next.
    """
    line: list[StepEntry] = []
    saved: set[int] = set()
    before: LedgerEntry | None = None
    for entry in ledger:
        if isinstance(entry, StartEntry):
            if before is not None:
                yield _restart(entry, before, line, saved)
            keep = entry.continues.step if entry.continues else 0
            line, saved = [step for step in line if step.step <= keep], {step for step in saved if step <= keep}
        elif isinstance(entry, CheckpointEntry):
            saved.add(entry.step)
        elif isinstance(entry, StepEntry):
            line.append(entry)
        before = entry


def _restart(start: StartEntry, before: LedgerEntry, line: Sequence[StepEntry], saved: set[int]) -> Fault:
    kept = start.continues.step if start.continues else 0
    left = [step.step for step in line if step.step > kept]
    last = line[-1].step if line else 0
    ended_well = last in saved or not line
    how = "ended in good order" if ended_well else "was killed, crashed or was fenced"
    since = f"from step {kept}" if start.continues else "from the beginning, there was no checkpoint"
    gone = f"{_steps(left)} of generation {before.generation} left the surviving line" if left else "no step was lost"
    given_up = f"; {_steps(start.gives_up)} given up, gradients were not finite" if start.gives_up else ""
    pause_s = (start.at - before.at).total_seconds()
    return Fault(
        "restart",
        f"learner restarted after step {last}: generation {before.generation} {how}, generation {start.generation} "
        f"went on {since}",
        f"{gone}{given_up}; {pause_s:.0f} s after the last entry of generation {before.generation}, which it fences",
        start.at,
    )


def _steps(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"step {numbers[0]}"
    run = numbers[-1] - numbers[0] == len(numbers) - 1
    return f"steps {numbers[0]} to {numbers[-1]}" if run else f"steps {', '.join(map(str, numbers))}"


def skipped_steps(ledger: Iterable[LedgerEntry]) -> Iterator[Fault]:
    """Steps that trained nothing because gradients were not finite."""
    for entry in ledger:
        lost = [group for group in entry.dropped if group.reason == "nonfinite"] if isinstance(entry, StepEntry) else []
        if lost and isinstance(entry, StepEntry) and not entry.trained:
            text = f"step {entry.step} of generation {entry.generation} was skipped: its gradient was not finite"
            yield Fault("skipped", text, f"{len(lost)} groups dropped", entry.at)


def announced_again(weights: Iterable[WeightVersion]) -> Iterator[Fault]:
    """Versions that a learner announced for a step that it had announced already: the first could not be loaded."""
    for older, newer in pairwise(weights):
        if (older.generation, older.step) == (newer.generation, newer.step):
            text = f"weights of step {newer.step} were announced again: version {newer.version} after {older.version}"
            yield Fault("weights", text, "the learner starved and found that the first cannot be loaded",
                        newer.published_at)  # fmt: skip


def stalls(line: Sequence[StepEntry], timeline: Timeline) -> Iterator[Fault]:
    """The longest pauses between two steps of one generation, and what the learner did meanwhile."""
    gaps = [(newer.at - older.at).total_seconds() for older, newer in pairwise(line)]
    if not gaps:
        return
    usual_s = median(gaps)
    pairs = [
        (gap_s, older, newer)
        for gap_s, (older, newer) in zip(gaps, pairwise(line), strict=True)
        if gap_s > max(_STALL_S, _STALL_FACTOR * usual_s) and older.generation == newer.generation
    ]
    for gap_s, older, newer in sorted(pairs, key=lambda each: -each[0])[:_STALLS_SHOWN]:
        answered = round(timeline.between("answered", older.at, newer.at))
        text = f"{gap_s:.0f} s without a step between steps {older.step} and {newer.step} (usually {usual_s:.1f} s)"
        yield Fault("stall", text, f"{_doing(newer)}; {_engines(answered, newer)}", older.at)


def _engines(answered: int, after: StepEntry) -> str:
    """What the engines did in a stall that ended with a step."""
    told = f"{counted(answered, 'group')} answered in that time"
    if answered > 2 * len(after.trained):
        return told
    return f"{told}: an engine, the pipeline or the broker was away, or there were no prompts"


def _doing(step: StepEntry) -> str:
    parts = {name: step.metrics[name] for name in _PARTS if name in step.metrics}
    if not parts:
        return "the step does not say what took so long"
    longest = max(parts, key=lambda name: parts[name])
    return f"{_PARTS[longest]} for {parts[longest]:.0f} s"


def dead_letters(letters: Iterable[DeadLetter]) -> Iterator[Fault]:
    """Inputs that could not be used, by stage and reason."""
    by_reason: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        by_reason.setdefault((letter.stage, letter.reason), []).append(letter)
    for (stage, reason), found in by_reason.items():
        first = found[0]
        text = f"{counted(len(found), 'dead letter')} in {stage}: {reason}"
        where = f"first {first.topic}/{first.partition}/{first.offset}: {first.detail[:200]}"
        yield Fault("dead letter", text, where, first.at)


def alarming_drops(line: Iterable[StepEntry]) -> Iterator[Fault]:
    """Drops that tell of a fault; those that are stale or teach nothing are part of the trade."""
    by_reason: dict[str, list[tuple[StepEntry, str]]] = {}
    for step in line:
        for group in step.dropped:
            if group.reason in _ALARMING_DROPS:
                by_reason.setdefault(group.reason, []).append((step, str(group.group)))
    for reason, found in by_reason.items():
        step, name = found[0]
        text = f"{counted(len(found), 'group')} dropped: {reason}"
        yield Fault("drop", text, f"first {name} in step {step.step}", step.at)


def null_rewards(flow: Flow) -> Iterator[Fault]:
    """Answers whose reward could not be computed, by reason."""
    for reason, number in flow.reward_errors.most_common():
        yield Fault("reward", f"{counted(number, 'answer')} without a reward: {reason}")


def unreadable(records: Sequence[str], verdict: Verdict) -> Iterator[Fault]:
    """Records that could not be decoded; those without a dead letter are the audit's."""
    if records:
        text = f"{counted(len(records), 'record')} of the topics could not be decoded"
        yield Fault("record", text, records[0][:200])
    if verdict.repeated:
        text = f"{counted(verdict.repeated, 'group')} in the trajectories topic more than once"
        yield Fault("record", text, "copies by another program, or a broken promise; the learner trains the first")


def said(told: Iterable[Said]) -> Iterator[Fault]:
    """Errors and last words in the logs of the processes."""
    for each in told:
        if not each.tells_of_fault:
            continue
        times = "" if each.times == 1 else f" ({each.times:,} times)"
        if each.level == "ended":
            yield Fault("log", f"asyncflow {each.event} ended with a message{times}", each.rest)
        else:
            words = f"{each.process} logged {each.event.replace('_', ' ')}{times}"
            yield Fault("log", words, each.rest, each.first)
