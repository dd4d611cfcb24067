"""Tasks by name. A new one is a class in a module of its own and a place in ``TASKS``."""

from collections.abc import Iterable
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

_ALONE: Final[tuple[type[Task], ...]] = (
    Support, Translation, Gsm8k, Countdown, Ifeval, Humaneval, Mbpp, TauRetail,
)  # fmt: skip
_FAMILIES: Final[tuple[type[Family], ...]] = (Glue, Superglue, Mathematics, Arith)
_MEMBERS: Final[tuple[type[Task], ...]] = tuple(member for family in _FAMILIES for member in family.members)
TASKS: Final[dict[str, type[Task]]] = {task.name: task for task in (*_ALONE, *_FAMILIES, *_MEMBERS)}


def find(name: str, arguments: Iterable[str] = (), flag: str = "--args") -> Task:
    """A task that knows what it was told.

    Args:
        name: of the task.
        arguments: ``KEY=VALUE``, such as ``to=fr``.
        flag: by which they were given, for messages.

    Raises:
        ConfigError: there is no such task, or it cannot be told that.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name[:80]!r}; {hint(name)}")
    told = dict(_split(argument, flag) for argument in arguments)
    try:
        return TASKS[name].model_validate(told)
    except ValidationError as error:
        raise ConfigError(f"{flag} of task {name}: {first_fault(error)}") from error


def hint(name: str) -> str:
    """Which task may have been meant, in words."""
    return did_you_mean(name, TASKS)


def _split(argument: str, flag: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"{flag} {argument[:80]!r}: expected KEY=VALUE, such as to=fr")
    return key, value
