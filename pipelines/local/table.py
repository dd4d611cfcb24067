"""A snapshot of a run as a terminal shows it: a table of stages, the newest step, the newest answers."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.local.monitor import ShownSample, Snapshot, StageRow

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ANSWER_CHARACTERS = 60


def render(title: str, snapshot: Snapshot, steps: int, rewards: Sequence[float]) -> RenderableType:
    """The live screen.

    Args:
        title: what the run is doing, such as ``demo: training``.
        snapshot: the state.
        steps: how many steps the run will take.
        rewards: mean reward of every step so far.
    """
    return Panel(
        Group(_stages(snapshot.rows), _progress(snapshot, steps, rewards), _answers(snapshot.samples)),
        title=title,
        title_align="left",
    )


def plain(snapshot: Snapshot, steps: int) -> str:
    """One line for a screen that is not a terminal."""
    generate = snapshot.rows[1]
    reward = "none yet" if snapshot.reward is None else f"{snapshot.reward:.2f}"
    return (
        f"step {snapshot.steps}/{steps}  reward {reward}  version {snapshot.version}  "
        f"staleness {snapshot.staleness_max}  groups {generate.given}  in flight {generate.in_flight}  "
        f"{generate.tokens_per_s or 0:.0f} tokens/s  errors {sum(row.errors for row in snapshot.rows[:3])}"
    )


def sparkline(values: Sequence[float]) -> str:
    """Values from 0 to 1 as a row of blocks."""
    return "".join(_BLOCKS[round(max(0.0, min(1.0, value)) * (len(_BLOCKS) - 1))] for value in values)


def _stages(rows: Sequence[StageRow]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for heading in ("in", "out", "lag", "in flight", "tokens/s", "errors or drops"):
        table.add_column(heading, justify="right")
    for row in rows:
        speed = "" if row.tokens_per_s is None else f"{row.tokens_per_s:.0f}"
        counts = (row.taken, row.given, row.lag, row.in_flight)
        table.add_row(row.stage, *map(str, counts), speed, str(row.errors))
    return table


def _progress(snapshot: Snapshot, steps: int, rewards: Sequence[float]) -> Text:
    reward = "none yet" if snapshot.reward is None else f"{snapshot.reward:.2f}"
    return Text(
        f"\nstep {snapshot.steps}/{steps}   reward {reward}  {sparkline(rewards)}   "
        f"version {snapshot.version}   staleness {snapshot.staleness_max}\n"
    )


def _answers(samples: Sequence[ShownSample]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("prompt", "answer", "reward", "version"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for sample in samples:
        reward = "null" if sample.reward is None else f"{sample.reward:.2f}"
        oldest, newest = sample.versions
        version = str(newest) if oldest == newest else f"{oldest}→{newest}"
        prompt = " ".join(sample.prompt.split())
        answer = " ".join(sample.answer.split())
        table.add_row(Text(prompt[-_ANSWER_CHARACTERS:]), Text(answer[:_ANSWER_CHARACTERS]), reward, version)
    return table
