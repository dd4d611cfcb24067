"""The curves of a run, as plain numbers: by step from the ledger, by time from the flow.

steps, evals, weights ──► Curve (by step)        flow, steps ──► Curve (by time)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from operator import add
from typing import Final, Literal

from pipelines.audit import Ages
from pipelines.log import RunLog
from pipelines.report.flow import Flow
from schemas.evals import EvalResult
from schemas.ledger import LedgerEntry, Settings, StartEntry, StepEntry

_BY_STEP: Final = (
    ("Reward", "mean of the step", {"reward_mean": "all groups that came", "reward_mean_trained": "groups trained"}),
    ("KL to the reference", "nats a token", {"kl": "KL"}),
    ("Entropy of the policy", "nats a token", {"entropy": "entropy"}),
    ("Gradient norm", "before clipping", {"grad_norm": "gradient norm"}),
    ("Loss", "", {"loss": "loss"}),
    ("Learning rate", "", {"learning_rate": "learning rate"}),
    ("Response length", "tokens, mean", {"response_tokens_mean": "response"}),
    ("Staleness", "updates of the weights", {"staleness_max": "max", "staleness_mean": "mean",
                                             "feedback_staleness_max": "max of rated groups"}),
    ("Engine against learner", "mean |difference of logprobs|", {"logprob_gap_mean": "gap"}),
    ("Seconds of a step", "s", {"seconds_wait": "wait for groups", "seconds_train": "train",
                                "seconds_publish": "publish", "seconds_held": "wait for the commit"}),
)  # fmt: skip
_CURVES_OF_OTHERS: Final = 24


@dataclass(frozen=True, slots=True)
class Trace:
    """One line or row of bars. ``x`` and ``y`` have the same length."""

    name: str
    x: Sequence[float]
    """Steps, seconds since 1970, or what the curve's ``x_title`` says."""
    y: Sequence[float | None]
    """Null for a gap."""
    errors: Sequence[float | None] | None = None
    """Standard errors of ``y``; null for none."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One picture."""

    title: str
    unit: str
    """Of the values."""
    traces: Sequence[Trace]
    x: Literal["step", "time", "updates"] = "step"
    """What lies to the right."""
    form: Literal["lines", "bars", "area"] = "lines"
    note: str = ""
    """How it is to be read, where that needs saying."""


def by_step(line: Sequence[StepEntry]) -> Iterator[Curve]:
    """What every run has, as far as it says so."""
    for title, unit, names in _BY_STEP:
        traces = [trace for name, words in names.items() if (trace := _metric(line, name, words))]
        if traces:
            yield Curve(title, unit, traces)


def others(line: Sequence[StepEntry]) -> list[Curve]:
    """Every other figure of the steps, in the order of their names."""
    shown = {name for _, _, names in _BY_STEP for name in names}
    names = {name for step in line for name in step.metrics} - shown
    traces = ((name, _metric(line, name, name)) for name in sorted(names)[:_CURVES_OF_OTHERS])
    return [Curve(name, "", [trace]) for name, trace in traces if trace]


def _metric(line: Sequence[StepEntry], name: str, words: str) -> Trace | None:
    values = [step.metrics.get(name) for step in line]
    return Trace(words, [step.step for step in line], values) if any(value is not None for value in values) else None


def held_out(evals: Sequence[EvalResult], log: RunLog) -> Curve | None:
    """Mean rewards of greedy answers to held-out prompts, with their standard errors."""
    step_of = {version.version: version.step for version in log.weights}
    series: dict[str, list[EvalResult]] = {}
    for result in evals:
        if result.decides:
            series.setdefault(f"{result.evaluation}: {result.task}", []).append(result)
    traces = []
    for name, results in series.items():
        placed = sorted(((step_of.get(each.version, 0), each) for each in results), key=lambda pair: pair[0])
        errors = [each.standard_error for _, each in placed]
        traces.append(Trace(name, [step for step, _ in placed], [each.value for _, each in placed],
                            errors if any(errors) else None))  # fmt: skip
    return Curve("Held-out prompts", "mean reward, greedy", traces, note="bars: one standard error") if traces else None


def staleness(log: RunLog, line: Sequence[StepEntry]) -> Curve | None:
    """How many samples were trained how many updates after their oldest token."""
    ages = Ages.of(log, list(line), Settings(max_staleness=0, groups_per_step=1))
    purposes = {(record.group, record.at): record.purpose for record in log.groups}
    counts: dict[str, Counter[int]] = {}
    for before, step in enumerate(line):
        for trained in step.trained:
            purpose = purposes.get((trained.group, trained.at), "train")
            if purpose != "demonstration":
                series = "answers to prompts" if purpose == "train" else "rated answers"
                counts.setdefault(series, Counter())[ages.staleness(trained.versions[0], before)] += trained.samples
    traces = [Trace(name, sorted(found), [found[age] for age in sorted(found)]) for name, found in counts.items()]
    return Curve("Staleness of what was trained", "samples", traces, "updates", "bars") if traces else None


def throughput(flow: Flow) -> list[Curve]:
    """Groups through each stage, and tokens, a second."""
    time = flow.timeline
    names = [name for name in ("answered", "trained", "dropped", "dead letters") if time.total(name)]
    if not names:
        return []
    x = time.starts()
    stages = Curve("Throughput by stage", f"groups a second, means of {time.width_s} s",
                   [Trace(name, x, time.rates(name)) for name in names], "time")  # fmt: skip
    tokens = Curve("Tokens", "response tokens a second", [Trace("engines", x, time.rates("tokens"))], "time", "area")
    return [stages, *([tokens] if time.total("tokens") else [])]


def occupancy(flow: Flow, log: RunLog, slots: int | None, group_size: float) -> Curve | None:
    """What the engines had to do: answers that were admitted and are not finished, beside what they compute at once.

    Args:
        flow: of the run.
        log: of the run.
        slots: sequences that all engines compute at once; null where that is not known.
        group_size: answers of a group, in the mean.

    Returns:
        Null where groups wait for feedback: the log does not say when they were answered.
    """
    time = flow.timeline
    x = time.starts()
    if not x or not flow.admitted or log.pending:
        return None
    finished = accumulate(map(add, time.rates("answered"), time.rates("dead letters")))
    admitted = _latest(flow.admitted, [start + time.width_s for start in x])
    open_ = [max(0.0, a - f * time.width_s) * group_size for a, f in zip(admitted, finished, strict=True)]
    traces = [Trace("answers admitted and unfinished", x, open_)]
    if slots:
        traces.append(Trace("computed at once, at most", x, [slots] * len(x)))
    note = "below the line of its slots an engine has room"
    return Curve("Work for the engines", "answers", traces, "time", note=note if slots else "")


def _latest(admitted: Sequence[tuple[datetime, int]], ends: Sequence[float]) -> Iterator[int]:
    """At each moment the newest count."""
    position, count = 0, 0
    for end in ends:
        while position < len(admitted) and admitted[position][0].timestamp() < end:
            count = admitted[position][1]
            position += 1
        yield count


def marks(ledger: Sequence[LedgerEntry]) -> list[tuple[int, float, str]]:
    """Restarts, to draw into curves: the step that was gone on from, seconds since 1970, and words."""
    starts = [entry for entry in ledger if isinstance(entry, StartEntry)][1:]
    return [
        (start.continues.step if start.continues else 0, start.at.timestamp(), f"generation {start.generation}")
        for start in starts
    ]
