"""A run in figures and words: everything that the page says, and nothing that it looks like. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Literal

from pipelines.audit import Verdict, audit
from pipelines.report import curves
from pipelines.report.curves import Curve
from pipelines.report.faults import Fault, find_faults
from pipelines.report.flow import WorkerFacts
from pipelines.report.gather import Gathered
from pipelines.report.lineage import Lineage, trace
from pipelines.report.logs import Said
from pipelines.report.samples import SampleBook
from pipelines.words import duration
from schemas.dead_letters import DeadLetter
from schemas.evals import EvalResult
from schemas.ledger import StartEntry, StepEntry, surviving_steps

_STEPS_COMPARED = 3
_ROWS_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the head of the page."""

    name: str
    value: str
    tone: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class Facts:
    """What the page says of a run."""

    run: str
    made_at: datetime
    tiles: Sequence[Tile]
    faults: Sequence[Fault]
    figures: Sequence[Curve]
    others: Sequence[Curve]
    """Figures of the steps that have no title of their own."""
    marks: Sequence[tuple[int, float, str]]
    """Restarts of the learner, see :func:`pipelines.report.curves.marks`."""
    evals: Sequence[EvalResult]
    """The newest 200."""
    dead_letters: Sequence[DeadLetter]
    """The newest 200."""
    ends: dict[str, int]
    """Groups by how they ended: trained, the reasons of drops, dead letters."""
    workers: dict[str, WorkerFacts]
    said: Sequence[Said]
    """Warnings and errors in the logs; those that tell of a fault stand among the faults too."""
    finish_reasons: dict[str, int]
    """Samples by why they ended."""
    feedback: dict[str, int]
    """Feedback records by what became of them."""
    outcomes: dict[str, int]
    """Decisions of the feedback pipeline by kind."""
    verdict: Verdict
    config: str
    """The resolved configuration as TOML; empty where it is not at hand."""
    book: SampleBook
    lineage: Lineage
    by_token: bool
    """Whether spans of weight versions are placed by token in the text, or by share."""


def facts_of(gathered: Gathered) -> Facts:
    """Says what there is to say of a run."""
    log, flow = gathered.log, gathered.flow
    line = surviving_steps(log.ledger)
    verdict = audit(gathered.run, log)
    return Facts(
        run=gathered.run,
        made_at=gathered.made_at,
        tiles=list(_tiles(gathered, line, verdict)),
        faults=find_faults(gathered, verdict, line),
        figures=list(_figures(gathered, line)),
        others=curves.others(line),
        marks=curves.marks(log.ledger),
        evals=log.evals[: -_ROWS_SHOWN - 1 : -1],
        dead_letters=log.dead_letters[: -_ROWS_SHOWN - 1 : -1],
        ends=_ends(verdict, len(log.dead_letters)),
        workers=dict(flow.workers),
        said=gathered.said,
        finish_reasons=dict(flow.finish_reasons.most_common()),
        feedback=dict(gathered.fates.most_common()),
        outcomes=dict((+gathered.outcomes).most_common()),
        verdict=verdict,
        config=gathered.config_text,
        book=gathered.book,
        lineage=trace(log.ledger, log.weights),
        by_token=gathered.by_token,
    )


def _figures(gathered: Gathered, line: Sequence[StepEntry]) -> Iterator[Curve]:
    log, flow = gathered.log, gathered.flow
    by_step = list(curves.by_step(line))
    yield from by_step[:1]
    if held_out := curves.held_out(log.evals, log):
        yield held_out
    yield from by_step[1:]
    if staleness := curves.staleness(log, line):
        yield staleness
    yield from curves.throughput(flow)
    slots = gathered.config.worker.max_num_seqs * max(1, len(flow.workers)) if gathered.config else None
    if occupancy := curves.occupancy(flow, log, slots, _group_size(gathered)):
        yield occupancy


def _group_size(gathered: Gathered) -> float:
    sizes = [record.samples for record in gathered.log.groups]
    return fmean(sizes) if sizes else 1.0


def _tiles(gathered: Gathered, line: Sequence[StepEntry], verdict: Verdict) -> Iterator[Tile]:
    log, flow = gathered.log, gathered.flow
    if held_out := _held_out(log.evals):
        yield Tile("held-out, greedy", f"{held_out[0].value:.2f} → {held_out[1].value:.2f}")
    rewards = [step.metrics["reward_mean"] for step in line if "reward_mean" in step.metrics]
    if rewards:
        first, last = fmean(rewards[:_STEPS_COMPARED]), fmean(rewards[-_STEPS_COMPARED:])
        yield Tile("training reward", f"{first:.2f} → {last:.2f}")
    yield Tile("steps", f"{len(line):,}")
    yield Tile("groups trained", f"{verdict.trained:,}")
    yield Tile("answers", f"{gathered.book.seen:,}")
    yield Tile("tokens generated", f"{flow.tokens:,}")
    yield Tile("updates in flight", f"{len(flow.taken_in_flight):,} of {len(log.weights):,}")
    yield Tile("staleness", f"{verdict.staleness_max} of {verdict.staleness_bound}")
    yield Tile("learner starts", str(verdict.generations), "bad" if verdict.generations > 1 else "")
    yield Tile("dead letters", f"{len(log.dead_letters):,}", "bad" if log.dead_letters else "")
    if duration := _duration(gathered):
        yield Tile("start to last step", duration)
    yield Tile("audit", "passed" if verdict.ok else "failed", "good" if verdict.ok else "bad")


def _held_out(evals: Sequence[EvalResult]) -> tuple[EvalResult, EvalResult] | None:
    """The first and the last result of the evaluation that was asked most."""
    deciding = [result for result in evals if result.decides]
    if not deciding:
        return None
    (name, task), _ = Counter((result.evaluation, result.task) for result in deciding).most_common(1)[0]
    same = sorted((each for each in deciding if (each.evaluation, each.task) == (name, task)), key=lambda r: r.version)
    return same[0], same[-1]


def _duration(gathered: Gathered) -> str | None:
    starts = [entry.at for entry in gathered.log.ledger if isinstance(entry, StartEntry)]
    steps = [entry.at for entry in gathered.log.ledger if isinstance(entry, StepEntry)]
    if not starts or not steps:
        return None
    return duration((max(steps) - min(starts)).total_seconds())


def _ends(verdict: Verdict, letters: int) -> dict[str, int]:
    dropped = {f"dropped: {reason}": number for reason, number in sorted(verdict.dropped.items())}
    rest = {"waiting for a step": verdict.waiting, "waiting for feedback": verdict.parked,
            "in flight": verdict.in_flight, "lost": verdict.lost}  # fmt: skip
    ends = {"trained": verdict.trained, **dropped, "dead letters": letters, **rest}
    return {name: number for name, number in ends.items() if number}
