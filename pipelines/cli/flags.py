"""The flags of a class of arguments: for completion, for "did you mean", and to tell which ones were given.

tyro makes the same flags of the same classes, and a test compares the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel

from schemas.complaints import choices_of
from schemas.errors import ConfigError
from schemas.suggestions import did_you_mean, nearest, nearest_path


class Flag(NamedTuple):
    """One spelling of an argument. Example: ``Flag("--model.dtype", True, ("auto", "float32"))``.

    Of a table of sections only the beginning is known, ``--rewards.judges.``.
    """

    name: str
    takes_value: bool
    choices: tuple[str, ...] = ()
    """Values that it takes; empty for any."""
    number: type[int] | type[float] | None = None
    """Null if it takes something else."""
    many: bool = False
    """Whether it takes any number of values, none as well."""


_POSITIONAL: Final = get_args(tyro.conf.Positional[str])[1:]


def flags_of(kind: type, prefix: str = "--") -> list[Flag]:
    """All flags of a class of arguments, a dataclass or a section of the configuration."""
    return [flag for name, annotation in _members(kind) for flag in _flags(name, annotation, prefix)]


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    if issubclass(kind, BaseModel):
        names = list(kind.model_fields)
    else:
        assert is_dataclass(kind), f"{kind} has no fields"
        names = [each.name for each in fields(kind)]
    return ((name, hints[name]) for name in names)


def _flags(name: str, annotation: Any, prefix: str) -> list[Flag]:
    kind, marks = _plain(annotation)
    if any(mark in _POSITIONAL for mark in marks):
        return []
    given = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
    spelt = given[0] if given else name.replace("_", "-")
    if isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel)):
        return flags_of(kind, f"{prefix}{spelt}." if spelt else prefix)
    if _is_table(kind):
        return [Flag(f"{prefix}{spelt}.", True)]
    if kind is bool:
        return [Flag(f"{prefix}{spelt}", False), Flag(f"{prefix}no-{spelt}", False)]
    many = get_origin(kind) in (tuple, dict, list)
    return [Flag(f"{prefix}{spelt}", True, tuple(choices_of(kind)), _number(kind), many)]


def _number(annotation: Any) -> type[int] | type[float] | None:
    kind = _plain(annotation)[0]
    for each in (kind, *(_plain(part)[0] for part in get_args(kind))):
        if get_origin(kind) in (None, UnionType, Union) and each in (int, float):
            return int if each is int else float
    return None


def _is_table(kind: Any) -> bool:
    values = get_args(kind)[1:] if get_origin(kind) is dict else ()
    return any(isinstance(each, type) and issubclass(each, BaseModel) for each in values)


def _plain(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        kind, *marks = get_args(annotation)
        return kind, tuple(marks)
    return annotation, ()


def given_flags(kind: type, arguments: Sequence[str]) -> list[str]:
    """The flags that were given, each as it is listed."""
    listed = {_dashed(flag.name): flag for flag in flags_of(kind)}
    given = (_dashed(name) for name, _ in _split(arguments))
    return [listed[name].name for name in given if name in listed]


def refuse_unknown(kind: type, arguments: Sequence[str], *, others: bool = False) -> None:
    """Says what is wrong with the first flag that does not exist, or whose value is no choice or no number.

    Args:
        kind: class of the arguments.
        arguments: as they were given.
        others: whether there may be flags that are not of the class.

    Raises:
        ConfigError: with the nearest one.
    """
    known = {_dashed(flag.name): flag for flag in [*flags_of(kind), Flag("--help", False)]}
    tables = tuple(name for name in known if name.endswith("."))
    for name, value in _split(arguments):
        if _dashed(name) in known:
            _refuse_value(known[_dashed(name)], value)
        elif not others and not name.startswith(tables or ("\0",)):
            near = nearest_path(name, known)
            raise ConfigError(
                f"unknown flag {name}; " + (f"did you mean {near}?" if near else "--help tells which are")
            )


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Every flag with its value; null where another flag, or nothing, follows."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):  # of no arguments, nothing
        name, equals, attached = argument.partition("=")
        if name.startswith("--") and name != "--":
            yield name, attached if equals else None if following.startswith("--") or not following else following


def _refuse_value(flag: Flag, value: str | None) -> None:
    if not flag.takes_value or flag.many:
        return
    if value is None:
        raise ConfigError(f"{flag.name} is given without a value")
    if flag.choices and value not in flag.choices and nearest(value, flag.choices):
        expected = f"expected one of {', '.join(flag.choices)}"
        raise ConfigError(f"{flag.name} {value!r}: {expected}; {did_you_mean(value, flag.choices)}")
    if flag.number is not None and value != "None":
        try:
            flag.number(value)
        except ValueError as error:
            expected = "a whole number" if flag.number is int else "a number"
            raise ConfigError(f"{flag.name} {value!r}: expected {expected}") from error


def _dashed(name: str) -> str:
    return name.replace("_", "-")
