"""The prompts of an evaluation of tasks: names ──tasks, families──► prompts of a split, a limit for each task.

A task that two families share, such as RTE of GLUE and SuperGLUE, is asked once and counts in both.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.evaluation.choices import choices_of
from pipelines.tasks.draw import draw
from pipelines.tasks.family import Family
from pipelines.tasks.registry import find
from pipelines.tasks.task import Split
from schemas.errors import ConfigError
from schemas.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked."""

    tasks: Mapping[str, tuple[Prompt, ...]]
    """By the name of the task that stands in them; one prompt or more each."""
    families: Mapping[str, tuple[str, ...]]
    """Which of the tasks, two or more, have a mean score together."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them, task after task."""
        return tuple(prompt for prompts in self.tasks.values() for prompt in prompts)


@dataclass(frozen=True, slots=True)
class Draw:
    """Which prompts of a task."""

    split: Split = "held_out"
    limit: int | None = None
    """Of each task, the first of an order that depends on the seed alone; null for all."""
    seed: int = 0
    """Of the order."""


def ask_tasks(names: Sequence[str], data: Path, draws: Draw, arguments: Sequence[str] = ()) -> Questions:
    """The prompts of tasks and families.

    Args:
        names: one or more; commas separate names, too.
        data: directory of the data sets.
        draws: which of their rows.
        arguments: ``KEY=VALUE``, of the one task that is named.

    Raises:
        ConfigError: no such task, directory, split or argument, or a file that is missing or wrong.
    """
    wanted = [name.strip() for given in names for name in given.split(",") if name.strip()]
    if not wanted:
        raise ConfigError("--tasks is missing: give tasks or families, such as --tasks glue or --tasks rte gsm8k")
    if arguments and len(wanted) > 1:
        raise ConfigError(f"--args are for one task, and --tasks names {len(wanted)}; evaluate one after the other")
    found = [find(name, arguments) for name in wanted]
    if not data.is_dir():
        raise ConfigError(f"--data {data}: no such directory; give the one that holds the data sets")
    if draws.limit is not None and draws.limit < 1:
        raise ConfigError(f"--limit {draws.limit}: expected 1 or more, or nothing for all")
    tasks: dict[str, tuple[Prompt, ...]] = {}
    families: dict[str, tuple[str, ...]] = {}
    for task in found:
        drawn = defaultdict[str, list[Prompt]](list)
        for prompt in draw(task, data, draws.split, seed=draws.seed):
            drawn[prompt.task].append(prompt)
        for name, prompts in drawn.items():
            tasks.setdefault(name, tuple(prompts[: draws.limit]))
        if isinstance(task, Family) and len(drawn) > 1:
            families[task.name] = tuple(drawn)
    return Questions(tasks, families)


def require_choices(questions: Questions) -> None:
    """Whether answers can be held to anything.

    Raises:
        ConfigError: no prompt says which answers there are.
    """
    if not any(map(choices_of, questions.prompts)):
        raise ConfigError(
            f"--constrained: the prompts of {', '.join(questions.tasks)} have no labels that answers could be held to; "
            "leave --constrained out"
        )
