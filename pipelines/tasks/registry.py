"""Tasks by name. A new one is a class in a module of its own and a place in ``TASKS``, or in a file that is named."""

from collections.abc import Iterable
from inspect import isabstract
from typing import Final

from pydantic import ValidationError

from pipelines.tasks.arith import Arith
from pipelines.tasks.countdown import Countdown
from pipelines.tasks.family import Family, Glue, Superglue
from pipelines.tasks.gsm8k import Gsm8k
from pipelines.tasks.humaneval import Humaneval
from pipelines.tasks.ifeval import Ifeval
from pipelines.tasks.mathematics import Mathematics
from pipelines.tasks.mbpp import Mbpp
from pipelines.tasks.support import Support
from pipelines.tasks.task import Task
from pipelines.tasks.tau_retail import TauRetail
from pipelines.tasks.translation import Translation
from schemas.errors import ConfigError
from schemas.records import first_fault
from schemas.suggestions import did_you_mean
from transforms.modules import is_file, load_module

_ALONE: Final[tuple[type[Task], ...]] = (
    Support, Translation, Gsm8k, Countdown, Ifeval, Humaneval, Mbpp, TauRetail,
)  # fmt: skip
_FAMILIES: Final[tuple[type[Family], ...]] = (Glue, Superglue, Mathematics, Arith)
_MEMBERS: Final[tuple[type[Task], ...]] = tuple(member for family in _FAMILIES for member in family.members)
TASKS: Final[dict[str, type[Task]]] = {task.name: task for task in (*_ALONE, *_FAMILIES, *_MEMBERS)}


def find(name: str, arguments: Iterable[str] = (), flag: str = "--args") -> Task:
    """A task that knows what it was told.

    Args:
        name: of the task, or of a file of Python that defines one, such as ``my_task.py``.
        arguments: ``KEY=VALUE``, such as ``to=fr``.
        flag: by which they were given, for messages.

    Raises:
        ConfigError: there is no such task, or it cannot be told that.
    """
    if name not in TASKS and not is_file(name):
        raise ConfigError(f"no task {name[:80]!r}; {hint(name)}")
    task = TASKS[name] if name in TASKS else _task_of_file(name)
    told = dict(_split(argument, flag) for argument in arguments)
    try:
        return task.model_validate(told)
    except ValidationError as error:
        raise ConfigError(f"{flag} of task {name}: {first_fault(error)}") from error


def hint(name: str) -> str:
    """Which task may have been meant, in words."""
    return did_you_mean(name, TASKS)


def _task_of_file(name: str) -> type[Task]:
    """The one task that a file defines; what it imports is not its own."""
    module = load_module(name, "the task")
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    tasks = [each for each in own if issubclass(each, Task) and not isabstract(each)]
    if len(tasks) != 1:
        found = ", ".join(each.__name__ for each in tasks) or "none"
        raise ConfigError(f"{name}: expected one class that is a Task with files() and rows(), found {found}")
    return tasks[0]


def _split(argument: str, flag: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"{flag} {argument[:80]!r}: expected KEY=VALUE, such as to=fr")
    return key, value
