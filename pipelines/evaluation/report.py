"""What an evaluation of tasks found, as JSON and as a table for a terminal."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from pipelines.evaluation.scores import FamilyScore, Score, TaskScore

_NONE = "-"


class Report(BaseModel):
    """Everything by which two evaluations can be compared, and what they found."""

    model_config = ConfigDict(frozen=True)

    model: str
    """Directory of the model that answered, or of the one that the run started from."""
    run: str | None
    """Null for a model that no run trained."""
    version: int | None
    """The oldest weight version of the run that produced a token; null for a model that no run trained."""
    version_max: int | None
    """The newest one; above ``version`` if weights changed while they were asked."""
    dtype: str
    """In which the engine computes; ``auto`` where the run decides."""
    split: Literal["train", "held_out"]
    limit: int | None
    """Prompts of each task; null for all."""
    seed: int
    """Of which ones a limit leaves, of what is drawn and of the intervals."""
    constrained: bool
    """Whether greedy answers had to be labels, where there are labels."""
    max_tokens: int
    """Longest answer, where it is free and its prompt does not say."""
    prompts_sha256: str
    """Of all prompts: figures on others are not comparable."""
    tasks: tuple[TaskScore, ...]
    families: tuple[FamilyScore, ...]


def render(report: Report) -> Table:
    """The table, of some 80 columns."""
    table = Table(title=_title(report), caption=_caption(report), box=None, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("task", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for heading in ("value", "95 %", "majority", "rows", "unanswered"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in report.tasks:
        _add_task(table, task, constrained=report.constrained)
    for family in report.families:
        rows = sum(task.rows for task in report.tasks if task.task in family.tasks)
        unanswered = sum(task.unanswered for task in report.tasks if task.task in family.tasks)
        table.add_row(family.family, f"mean of {len(family.tasks)} tasks", *_values(family), str(rows), str(unanswered))
    return table


def _add_task(table: Table, task: TaskScore, *, constrained: bool) -> None:
    named = [(_metric(score, free=constrained and not task.held), *_values(score)) for score in task.scores]
    first, *others = named or [(_NONE,) * 4]
    table.add_row(task.task, *first, str(task.rows), str(task.unanswered))
    for cells in others:
        table.add_row("", *cells)


def _metric(score: Score, *, free: bool) -> str:
    if score.temperature:
        return f"{score.metric}, {score.samples} drawn"
    return f"{score.metric}, free" if free else score.metric


def _values(score: Score | FamilyScore) -> tuple[str, str, str]:
    majority = _NONE if score.majority is None else f"{score.majority:.3f}"
    return f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}", majority


def _title(report: Report) -> str:
    how = f"{report.split.replace('_', ' ')}, greedy{', held to labels' if report.constrained else ''}"
    if report.run is None:
        return f"{report.model}, {how}"
    newest = f" to {report.version_max}" if report.version_max != report.version else ""
    return f"run {report.run}, version {report.version}{newest}, {how}"


def _caption(report: Report) -> str | None:
    """What a reader has to know besides: rewards that nobody could compute."""
    missing = [f"{task.task} {task.null_rewards}" for task in report.tasks if task.null_rewards]
    return f"answers whose reward could not be computed, in no mean: {', '.join(missing)}" if missing else None
