"""From what the user names to pools of prompts.

gsm8k=2, glue=4:tasks=sst2,rte ──► a pool of each task; a family divides its weight among its members
prompts.jsonl=1                ──► one pool
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.curriculum.selection import Pool
from pipelines.submit import read_lines
from pipelines.tasks.family import Family
from pipelines.tasks.registry import find
from pipelines.tasks.task import Task
from schemas.errors import ConfigError, RecordError
from schemas.prompts import Prompt


@dataclass(frozen=True)
class Named:
    """What the user named, with its weight among the others. Example: ``Named("glue", 4.0, ("tasks=sst2,rte",))``."""

    name: str
    weight: float = 1.0
    told: tuple[str, ...] = ()

    @classmethod
    def task(cls, text: str) -> "Named":
        """Reads ``NAME[=WEIGHT][:KEY=VALUE]...``.

        Raises:
            ConfigError: the weight is no number above 0.
        """
        head, *told = text.split(":")
        name, equals, weight = head.partition("=")
        return cls(name, _weight(weight, f"--tasks {text}") if equals else 1.0, tuple(told))

    @classmethod
    def file(cls, text: str) -> "Named":
        """Reads ``FILE[=WEIGHT]``; a file of that whole name goes first.

        Raises:
            ConfigError: the weight is no number above 0.
        """
        name, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists():
            return cls(text)
        return cls(name, _weight(weight, f"--files {text}"))


def _weight(text: str, given: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"{given[:200]}: weight {text[:80]!r}, expected a number above 0, such as 2; leave out what "
                          "is not to be drawn")  # fmt: skip
    return weight


def load_pools(tasks: Sequence[Named], files: Sequence[Named], data: Path | None) -> list[Pool]:
    """The prompts of all that was named.

    Args:
        tasks: by their names.
        files: JSON lines in the form of the prompts topic.
        data: directory that holds the data sets of the tasks.

    Raises:
        ConfigError: nothing was named, or a task, its data or a file is missing or wrong, or two prompts have one id.
    """
    if not tasks and not files:
        raise ConfigError("nothing to draw from: name tasks, such as --tasks gsm8k=2 arith=1, or files with --files")
    pools = [pool for named in tasks for pool in _pools_of_task(named, data)]
    pools += [_pool_of_file(named) for named in files]
    _refuse_twice(pools)
    return pools


def _pools_of_task(named: Named, data: Path | None) -> list[Pool]:
    task = find(named.name, named.told, "--tasks")
    if data is None:
        raise ConfigError(f"{named.name} is a task: give the directory of its data with --data DIR ({task.title})")
    members = _members(task)
    if not members:
        raise ConfigError(f"task {task.name} has no rows to train on, all of it is held out; leave it out of --tasks")
    return [_pool(each.label, named.weight / len(members), each.prompts(data, "train")) for each in members]


def _members(task: Task) -> tuple[Task, ...]:
    """Those that have rows to train on."""
    if isinstance(task, Family):
        return task.having("train")
    return (task,) if task.files("train") else ()


def _pool_of_file(named: Named) -> Pool:
    return _pool(named.name, named.weight, _prompts_in(Path(named.name)))


def _prompts_in(file: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_lines(file), start=1):
        try:
            prompt = Prompt.decode(line)
        except RecordError as error:
            raise ConfigError(f"--files {file}, prompt {number}: {error}; correct it or leave it out") from error
        if prompt.prompt_id is None:
            raise ConfigError(
                f"--files {file}, prompt {number}: no prompt_id; give each prompt one of its own, by which its results "
                "are found again"
            )
        yield prompt


def _pool(name: str, weight: float, prompts: Iterable[Prompt]) -> Pool:
    ids, lines = list[str](), list[bytes]()
    for prompt in prompts:
        assert prompt.prompt_id is not None, "tasks name their prompts, and of files it was checked"
        ids.append(prompt.prompt_id)
        lines.append(prompt.encode())
    if not ids:
        raise ConfigError(f"{name}: no prompts to train on; give another file or leave it out")
    return Pool(name, weight, ids, lines)


def _refuse_twice(pools: Sequence[Pool]) -> None:
    """Two pools of one name would be one in the figures, and two prompts of one id one in the results."""
    names, owners = set[str](), dict[str, str]()
    for pool in pools:
        if pool.name in names:
            raise ConfigError(f"{pool.name} is named twice; name it once, with the sum of the weights, and choose the "
                              "tasks of a family that has it, too: superglue=1:tasks=boolq,cb")  # fmt: skip
        names.add(pool.name)
        for identity in pool.ids:
            if identity in owners:
                raise ConfigError(f"prompt_id {identity[:200]!r} is in {owners[identity]} and again in {pool.name}; "
                                  "give each prompt an id of its own")  # fmt: skip
            owners[identity] = pool.name
