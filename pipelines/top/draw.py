"""The live screen, drawn with rich: sentences, flow, learner, workers, what was lost, the newest answers."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.top.explain import Level, Sentence, reason
from pipelines.top.state import Engine, Learner, ShownSample, Snapshot, Stage, Worker
from pipelines.words import duration, listed, printable

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR_CELLS: Final = 20
_ANSWER_CHARACTERS: Final = 60
_SAMPLES: Final = 4
_WORKERS: Final = 8
_STYLES: Final[Mapping[Level, str]] = {"fault": "bold red", "wait": "bold", "note": "dim"}
_MARKS: Final[Mapping[Level, str]] = {"fault": "✗", "wait": "→", "note": "·"}
_FIGURES: Final = (
    ("kl", "KL"), ("entropy", "entropy"), ("loss", "loss"), ("grad_norm", "grad norm"), ("clip_fraction", "clipped"),
    ("logprob_gap_mean", "logprob gap"), ("response_tokens_mean", "answer tokens"), ("seconds_step", "s a step"),
    ("prompts_parked", "parked"),
)  # fmt: skip
"""Of ``docs/metrics.md``, those that stand on the screen where the newest step has them."""


def render(now: Snapshot, sentences: Sequence[Sentence], title: str = "") -> RenderableType:
    """The whole screen.

    Args:
        now: the run.
        sentences: what is to be said of it.
        title: of the frame; the run's name unless given.
    """
    parts: list[RenderableType] = [
        _sentences(sentences), _flow(now.stages), _learner(now.learner),
        *([_engine(now.engine)] if now.is_live else []), *([_workers(now.workers)] if now.workers else []),
        _losses(now), *([_answers(now.samples[-_SAMPLES:])] if now.samples else []),
    ]  # fmt: skip
    spaced = [each for part in parts for each in (part, Text(""))]
    return Panel(Group(*spaced[:-1]), title=title or now.run, title_align="left")


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of blocks: from 0 to 1, or further where they go further."""
    low, high = min((0.0, *values)), max((1.0, *values))
    return "".join(_BLOCKS[round((value - low) / (high - low) * (len(_BLOCKS) - 1))] for value in values)


def _sentences(sentences: Sequence[Sentence]) -> Text:
    lines = [Text(f"{_MARKS[each.level]} {each.text}", style=_STYLES[each.level]) for each in sentences]
    return Text("\n").join(lines)


def _flow(stages: Sequence[Stage]) -> Table:
    table = _table("groups", "so far", "/s", "waiting", "oldest", "records behind")
    for stage in stages:
        table.add_row(
            stage.name, str(stage.total), _number(stage.per_s), _number(stage.waiting), _age(stage.oldest_s),
            _number(stage.lag_records),
        )  # fmt: skip
    return table


def _learner(learner: Learner) -> Text:
    steps = f"{learner.step}/{learner.steps}" if learner.steps else str(learner.step)
    reward = f"{learner.rewards[-1]:.2f} {sparkline(learner.rewards)}" if learner.rewards else "none yet"
    figures = [f"{label} {_figure(learner.metrics[name])}" for name, label in _FIGURES
               if name in learner.metrics and (learner.metrics[name] or name != "prompts_parked")]  # fmt: skip
    need = "" if learner.need is None else f"   has {learner.have} of {learner.need} groups"
    line = f"step {steps}   reward {reward}   version {learner.version}   generation {learner.generation}{need}"
    return Text("\n".join([line, *(["   ".join(figures)] if figures else [])]))


def _engine(engine: Engine) -> Text:
    parts = []
    if engine.occupancy is not None:
        filled = round(engine.occupancy * _BAR_CELLS)
        parts.append(f"engine {'█' * filled}{'░' * (_BAR_CELLS - filled)} {engine.occupancy:.0%}")
        if engine.occupancy < 0.995 and engine.empty:
            parts.append(f"({reason(engine.empty)})")
    if engine.tokens_per_s is not None:
        parts.append(f"{engine.tokens_per_s:.0f} tokens/s")
    if engine.workers_up is not None:
        parts.append(f"{engine.workers_up} worker{'' if engine.workers_up == 1 else 's'} up")
    return Text("   ".join(parts or ["engine: no endpoint tells"]))


def _workers(workers: Sequence[Worker]) -> Table:
    table = _table("worker", "state", "version", "running", "queued", "tokens/s", "heard")
    for worker in workers[:_WORKERS]:
        running = "" if worker.running is None else f"{worker.running} of {worker.slots}"
        table.add_row(
            Text(worker.url), Text(worker.state, style="red" if worker.state == "silent" else ""), str(worker.version),
            running, _number(worker.queued), _number(worker.tokens_per_s), f"{_age(worker.heard_s)} ago",
        )  # fmt: skip
    if len(workers) > _WORKERS:
        table.caption = f"and {len(workers) - _WORKERS} more"
    return table


def _losses(now: Snapshot) -> Text:
    total = sum(now.learner.staleness.values())
    staleness = "   ".join(
        f"{age}: {'█' * max(1, round(_BAR_CELLS * number / total))} {number}"
        for age, number in now.learner.staleness.items()
    )
    lines = [f"staleness in updates   {staleness or 'nothing trained yet'}"]
    if now.learner.dropped:
        lines.append(f"dropped   {listed(now.learner.dropped)}")
    if now.dead_letters:
        lines.append(f"dead letters   {printable(listed(now.dead_letters))}")
    return Text("\n".join(lines))


def _answers(samples: Sequence[ShownSample]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("prompt", "answer", "reward", "version"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for sample in samples:
        oldest, newest = sample.versions
        table.add_row(
            Text(printable(sample.prompt)[-_ANSWER_CHARACTERS:]),
            Text(printable(sample.answer)[:_ANSWER_CHARACTERS]),
            "null" if sample.reward is None else f"{sample.reward:.2f}",
            str(newest) if oldest == newest else f"{oldest}→{newest}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _figure(value: float) -> str:
    return f"{value:.3g}"


def _age(age_s: float | None) -> str:
    return "" if age_s is None else duration(age_s)
