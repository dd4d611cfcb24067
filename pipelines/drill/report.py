"""What a drill found, as one JSON object and as a table for people."""

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from pipelines.audit import Verdict
from pipelines.drill.scene import Blow
from pipelines.drill.watch import COUNTS
from pipelines.local.threads import cores

_NONE: Final = "-"
_WIDTH: Final = 132


@dataclass
class Report:
    """The account of one drill.

    Attributes:
        run: the run's name.
        seed: of the order of faults and of the prompts.
        blows: in their order.
        verdict: of the last audit, after everything was stopped, from the log alone.
        bad_weight_loads: versions that were served although nobody announced them or their bytes were wrong.
        defaulted_rewards: samples whose reward is not what it has to be.
        given_up: dead letters of good prompts, by reason; not lost, but not answered either.
        torn: directories whose manifest says that they are whole, and that are not.
        repeated: groups that the pipeline wrote more than once.
        replay_equal: whether the last step, trained again from the log, gave the same bits; None if nobody tried.
        productive_share: of the learner's time spent in steps that survive, without faults and with them; a step
            in which the learner was stopped counts whole.
        steps_per_minute: that survive, without faults and with them.
        groups_per_s: that surviving steps trained, without faults and with them.
        seconds: from the first fault to the end.
        ended: why the drill ended early; empty if it did not.
    """

    run: str
    seed: int
    blows: list[Blow] = field(default_factory=list)
    verdict: Verdict | None = None
    bad_weight_loads: list[str] = field(default_factory=list)
    defaulted_rewards: list[str] = field(default_factory=list)
    given_up: dict[str, int] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)
    repeated: int = 0
    replay_equal: bool | None = None
    productive_share: dict[str, float] = field(default_factory=dict)
    steps_per_minute: dict[str, float] = field(default_factory=dict)
    groups_per_s: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    ended: str = ""

    @property
    def struck(self) -> list[Blow]:
        """Faults that could be tried here."""
        return [blow for blow in self.blows if not blow.not_possible]

    @property
    def counts(self) -> dict[str, int]:
        """Everything that has to be 0."""
        verdict = self.verdict
        return {
            **{name: getattr(verdict, name) if verdict else 0 for name in COUNTS},
            "counted_during_faults": sum(sum(blow.counts.values()) for blow in self.struck),
            "bad_weight_loads": len(self.bad_weight_loads),
            "defaulted_rewards": len(self.defaulted_rewards),
            "torn": len(self.torn),
            "repeated": self.repeated,
            "missing_witnesses": sum(len(blow.missing) for blow in self.struck),
        }

    @property
    def ok(self) -> bool:
        """Whether every count is 0, and there was something to count."""
        passed = self.verdict is not None and self.verdict.ok
        replayed = self.replay_equal is not False
        return bool(passed and replayed and self.struck and not any(self.counts.values()) and not self.ended)

    def to_json(self) -> dict[str, Any]:
        """The whole account."""
        return {
            "run": self.run,
            "seed": self.seed,
            "ok": self.ok,
            "ended": self.ended,
            "machine": {"cores": cores(), "processor": platform.machine(), "python": platform.python_version()},
            "seconds": round(self.seconds, 1),
            "faults_struck": len(self.struck),
            "counts": self.counts,
            "replay_equal": self.replay_equal,
            "productive_share": self.productive_share,
            "steps_per_minute": self.steps_per_minute,
            "groups_per_s": self.groups_per_s,
            "tokens": self.tokens,
            "given_up": self.given_up,
            "rows": [asdict(row) for row in rows_of(self.blows)],
            "findings": [*self.bad_weight_loads, *self.defaulted_rewards, *self.torn],
            "blows": [_blow_to_json(blow) for blow in self.blows],
            "audit": self.verdict.model_dump(mode="json") if self.verdict else None,
        }


@dataclass(frozen=True)
class Row:
    """All blows of one fault. Seconds are the median and the most; None where nothing was measured."""

    fault: str
    times: int
    lost: int
    duplicate: int
    mixed_attempts: int
    zombie_commits: int
    detect_s: tuple[float, float] | None
    recover_s: tuple[float, float] | None
    tokens_again: int
    dead_letters: int
    missing: int
    not_possible: str


def rows_of(blows: Iterable[Blow]) -> list[Row]:
    """One row a fault, in alphabetical order."""
    by_fault: dict[str, list[Blow]] = {}
    for blow in blows:
        by_fault.setdefault(blow.fault, []).append(blow)
    return [_row(fault, of_it) for fault, of_it in sorted(by_fault.items())]


def _row(fault: str, blows: list[Blow]) -> Row:
    def total(name: str) -> int:
        return sum(blow.counts.get(name, 0) for blow in blows)

    return Row(
        fault=fault,
        times=sum(not blow.not_possible for blow in blows),
        lost=total("lost"),
        duplicate=total("duplicate"),
        mixed_attempts=total("mixed_attempts"),
        zombie_commits=total("zombie_commits"),
        detect_s=_spread(blow.detect_s for blow in blows),
        recover_s=_spread(blow.recover_s for blow in blows),
        tokens_again=sum(blow.tokens_again for blow in blows),
        dead_letters=sum(blow.dead_letters for blow in blows),
        missing=sum(len(blow.missing) for blow in blows),
        not_possible=next((blow.not_possible for blow in blows if blow.not_possible), ""),
    )


def _spread(seconds: Iterable[float | None]) -> tuple[float, float] | None:
    known = [second for second in seconds if second is not None]
    return (round(median(known), 1), round(max(known), 1)) if known else None


def _blow_to_json(blow: Blow) -> dict[str, Any]:
    times = {name: _iso(getattr(blow, name)) for name in ("began_at", "over_at", "detected_at", "recovered_at")}
    seconds = {"detect_s": blow.detect_s, "recover_s": blow.recover_s}
    return {**asdict(blow), **times, **seconds}


def _iso(time: Any) -> str | None:
    return time.isoformat() if time else None


def show(report: Report) -> None:
    """Prints the table and, below it, everything that is not 0."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"asyncflow drill: {report.run}, seed {report.seed}", title_justify="left")
    table.add_column("fault", no_wrap=True)
    for name in ("times", "lost", "duplicate", "mixed", "zombies", "detect s", "recover s", "tokens again", "dead"):
        table.add_column(name, justify="right")
    for row in rows_of(report.blows):
        table.add_row(*_cells(row))
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)
    console.print(_summary(report), highlight=False)


def _cells(row: Row) -> list[str]:
    counts = (row.times, row.lost, row.duplicate, row.mixed_attempts, row.zombie_commits)
    if row.not_possible:
        return [row.fault, f"not here: {row.not_possible}"]
    again = (row.tokens_again, row.dead_letters)
    return [row.fault, *map(str, counts), _range(row.detect_s), _range(row.recover_s), *map(str, again)]


def _range(spread: tuple[float, float] | None) -> str:
    if spread is None:
        return _NONE
    middle, most = spread
    return f"{middle:g}" if middle == most else f"{middle:g} .. {most:g}"


def _summary(report: Report) -> str:
    wrong = {name: count for name, count in report.counts.items() if count}
    lines = [f"{len(report.struck)} faults in {report.seconds:.0f} s; seconds are the median and the most"]
    if report.productive_share:
        shares = {name: f"{100 * share:.1f} %" for name, share in report.productive_share.items()}
        lines.append(f"productive share of the learner's time: {shares}; steps a minute: {report.steps_per_minute}")
    lines.append(f"good prompts that became dead letters, by reason: {report.given_up or 'none'}")
    if report.replay_equal is not None:
        lines.append(f"the last step, trained again from the log: {'equal' if report.replay_equal else 'NOT EQUAL'}")
    lines += [f"not 0: {wrong}"] if wrong else ["every count is 0"]
    lines += [f"  {blow.fault}: missing: {text}" for blow in report.struck for text in blow.missing]
    lines += [f"  {text}" for text in (*report.torn, *report.bad_weight_loads, *report.defaulted_rewards)][:20]
    lines += [f"  {fault}" for fault in (report.verdict.faults if report.verdict else [])]
    return "\n".join([*lines, *([f"ended early: {report.ended}"] if report.ended else [])])
