"""What is wrong with a configuration, in words: the key, where it was written, what was given, what may be meant."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from schemas.secrets import is_secret, masked
from schemas.suggestions import did_you_mean, nearest, nearest_path

Place = tuple[int | str, ...]
"""The parts of a dotted key."""
_TYPES: Final = ("str", "int", "float", "bool")
"""By which pydantic names the members of a union, behind the place."""
_A_SLIP: Final = 0.85
"""So much alike are names that differ by a letter or two."""


def explain(error: ValidationError, root: type[BaseModel], written: Mapping[str, str] | None = None) -> str:
    """Pydantic's complaints, one line a key, with the nearest known key or value for a misspelt one.

    Args:
        error: of the model.
        root: the model, such as ``RunConfig``.
        written: where each dotted key was written, to be named.
    """
    return "\n  ".join(
        _explain_one(root, place, *fault) + _where(".".join(map(str, place)), written or {})
        for place, fault in _faults(error).items()
    )


class _Fault(NamedTuple):
    kind: str
    message: str
    given: object


def _faults(error: ValidationError) -> dict[Place, _Fault]:
    """One fault a place: where several types are possible, pydantic says of each that it is not that one."""
    found: dict[Place, _Fault] = {}
    for each in error.errors():
        place, message = each["loc"], each["msg"]
        if place and place[-1] in _TYPES:
            place = place[:-1]
        if place in found:
            message = f"{found[place].message}, or {message[:1].lower()}{message[1:]}"
        found[place] = _Fault(each["type"], message, each["input"])
    return found


def _explain_one(root: type[BaseModel], where: Place, kind: str, message: str, given: object) -> str:
    key = ".".join(str(part) for part in where)
    if kind == "extra_forbidden":
        return f"unknown key {key}; {_known_key(root, where)}"
    message = message.removeprefix("Value error, ")
    if kind == "literal_error":
        near = nearest(str(given), choices_of(field_type(root, where)))
        message += f"; did you mean {near}?" if near else ""
    if isinstance(given, dict):
        return f"{key}: {message}" if key else message
    return f"{key} = {_shown(where, given)}: {message}" if key else message


def _shown(where: Place, given: object) -> str:
    """What was given, unless a part of its place, or of itself, is named like a secret."""
    held = any(is_secret(str(part)) for part in where) and not isinstance(given, (int, float))
    return "***" if held else repr(masked(given))


def _where(key: str, written: Mapping[str, str]) -> str:
    """Where a key, or the first one below it, was written."""
    places = [place for other, place in written.items() if other == key or other.startswith(f"{key}.")]
    return f" ({places[0]})" if places and key else ""


def _known_key(root: type[BaseModel], where: Place) -> str:
    section = field_type(root, where[:-1])
    known = list(section.model_fields) if hasattr(section, "model_fields") else []
    given = str(where[-1])
    # A key of that very name in another section is nearer than one here that looks alike, but for a letter or two.
    elsewhere = nearest_path(".".join(map(str, where)), _keys_of(root), cutoff=1)
    if elsewhere and not nearest(given, known, _A_SLIP):
        return f"did you mean {elsewhere}?"
    return did_you_mean(given, known, others="known here:")


def _keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys; those of a model that lacks defaults too."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def field_type(root: type[BaseModel], where: Place) -> Any:
    """The annotation of what stands at a place; of a table of sections the next part is a name."""
    found: Any = root
    for part in where:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(part))
            found = field.annotation if field else None
        else:
            found = next(iter(get_args(found)[1:]), None)
    return found


def choices_of(annotation: Any) -> list[str]:
    """The texts among which a ``Literal``, or a union with one, leaves the choice."""
    return [
        choice for each in (annotation, *get_args(annotation)) for choice in get_args(each) if isinstance(choice, str)
    ]
