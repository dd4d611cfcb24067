"""Things by name that prompts ask for: what rewards and environments have in common.

    @reward("starts_with")         prompt ──► {"name": "starts_with", "args": {…}}
    def starts_with(…): …                        │ find ──► Entry ──► parse ──► typed arguments
        └──────── add ──────► Registry ◄─────────┘

The class of the arguments is taken from an annotation, so that a prompt's arguments are checked when
the prompt arrives. A program's own things are registered by importing the modules that it names.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import ConfigError, RecordError
from schemas.prompts import Call
from schemas.records import first_fault
from schemas.suggestions import did_you_mean
from transforms.modules import load_module


class Arguments(BaseModel):
    """Base of the arguments of a reward or an environment: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ThingT = TypeVar("ThingT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Entry(Generic[ThingT]):
    """A registered thing."""

    name: str
    thing: ThingT
    arguments: type[BaseModel]


class Registry(Generic[ThingT]):
    """All things of one kind.

    Args:
        kind: one word for messages and reasons, such as ``reward``.
        form: what is expected of a thing, for messages.
        setting: the configuration key that names further modules.
        built_in: the modules that are always imported.
        reserved: names that mean something else.
    """

    def __init__(
        self, kind: str, *, form: str, setting: str, built_in: Iterable[str], reserved: Iterable[str] = ()
    ) -> None:
        self._kind, self._form, self._setting = kind, form, setting
        self._built_in, self.reserved = tuple(built_in), frozenset(reserved)
        self._entries: dict[str, Entry[ThingT]] = {}

    def add(self, name: str, thing: ThingT, annotated: Callable[..., Any]) -> None:
        """Registers a thing; a module that is imported twice registers it again.

        Args:
            name: by which prompts ask for it.
            thing: a function or a class.
            annotated: the function whose parameter ``arguments`` says the class of the arguments.

        Raises:
            ConfigError: the name belongs to another thing, or the arguments are not annotated.
        """
        known = self._entries.get(name)
        if name in self.reserved or (known and _origin(known.thing) != _origin(thing)):
            raise ConfigError(f"{self._kind} {name!r} is registered twice; give {_origin(thing)} another name")
        self._entries[name] = Entry(name, thing, self._arguments_class(name, annotated))

    def _arguments_class(self, name: str, annotated: Callable[..., Any]) -> type[BaseModel]:
        annotation = get_type_hints(annotated).get("arguments")
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            raise ConfigError(
                f"{self._kind} {name!r}: expected {self._form} with a pydantic model M, "
                f"its arguments are annotated {annotation!r}"
            )
        return annotation

    def load(self, modules: Iterable[str] = ()) -> list[str]:
        """Imports what comes with the project and ``modules``, which may be files (:mod:`transforms.modules`).

        Returns:
            All registered names.

        Raises:
            ConfigError: a module cannot be imported.
        """
        for module in (*self._built_in, *modules):
            load_module(module, self._setting)
        return sorted(self._entries)

    def find(self, name: str) -> Entry[ThingT]:
        """The thing of that name.

        Raises:
            RecordError: ``unknown_{kind}``, with the nearest name.
        """
        entry = self._entries.get(name)
        if entry is None:
            known = sorted([*self._entries, *self.reserved])
            hint = did_you_mean(name, known, form=repr, others="known:")
            raise RecordError(f"unknown_{self._kind}", f"no {self._kind} is registered as {name[:80]!r}; {hint}")
        return entry

    def check(self, call: Call) -> None:
        """Whether the thing exists and understands its arguments. A reserved name takes any.

        Raises:
            RecordError: ``unknown_{kind}`` or ``bad_{kind}_arguments``.
        """
        if call.name not in self.reserved:
            self.parse_arguments(self.find(call.name), call)

    def parse_arguments(self, entry: Entry[ThingT], call: Call) -> BaseModel:
        """The typed arguments.

        Raises:
            RecordError: ``bad_{kind}_arguments``.
        """
        try:
            return entry.arguments.model_validate(call.args)
        except ValidationError as error:
            detail = f"{self._kind} {call.name!r}: {first_fault(error)}"
            raise RecordError(f"bad_{self._kind}_arguments", detail) from error


def _origin(thing: Callable[..., Any]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
