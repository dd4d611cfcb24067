"""The base of every record that travels as JSON."""

import json
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from schemas.errors import RecordError

_Entry = TypeVar("_Entry")


def now() -> datetime:
    """The present instant, in UTC."""
    return datetime.now(UTC)


def isoformat(instant: datetime) -> str:
    """``2026-01-31T12:00:00.000Z``: milliseconds, UTC, as in the exact forms of the records."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _to_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{instant} lies outside the years 1 to 9999 in UTC") from error


Instant = Annotated[
    AwareDatetime,
    AfterValidator(_to_utc),
    PlainSerializer(isoformat, return_type=str, when_used="json"),
]
"""A moment with a time zone, written in UTC with milliseconds."""


class Record(BaseModel):
    """A JSON record of a topic.

    ``schema`` is the version of its form; unknown keys are ignored, so that a newer writer may add some.
    """

    model_config = ConfigDict(populate_by_name=True, extra="ignore", frozen=True, allow_inf_nan=False)

    max_bytes: ClassVar[int | None] = None
    """Longest value that is read; null where only this project writes."""
    schema_version: Literal[1] = Field(default=1, alias="schema")

    def encode(self) -> bytes:
        """The record's value, UTF-8 JSON."""
        return self.model_dump_json(by_alias=True, exclude_unset=False).encode()

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """Reads a record's value.

        Raises:
            RecordError: ``too_large``, ``not_json`` or ``bad_record``, with the first fault in words.
        """
        if value is None:
            raise RecordError("bad_record", "the value is null, expected a JSON object")
        if cls.max_bytes is not None and len(value) > cls.max_bytes:
            raise RecordError("too_large", f"{len(value)} bytes, expected at most {cls.max_bytes}")
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            raise _fault(value, error) from error


def _fault(value: bytes, error: ValidationError) -> RecordError:
    """Whether it is no JSON at all, which only a value that was refused is asked: one that was read is."""
    try:
        json.loads(value)
    except (ValueError, RecursionError) as broken:
        return RecordError("not_json", f"{broken}; the value starts with {value[:40]!r}")
    return RecordError("bad_record", first_fault(error))


def decode_one_of(kinds: TypeAdapter[_Entry], value: bytes) -> _Entry:
    """Reads a record of a topic that has several kinds.

    Args:
        kinds: the union of them, told apart by a field.
        value: JSON.

    Raises:
        RecordError: ``bad_record``.
    """
    try:
        return kinds.validate_json(value)
    except ValidationError as error:
        raise RecordError("bad_record", first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: where, what is wrong, what was given."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "record"
    if fault["type"] == "literal_error" and fault["loc"][-1:] == ("schema",):
        return (
            f"schema: version {_cut(repr(fault['input']), 80)} of the record, this release reads version 1; "
            "use the release that wrote it"
        )
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{_cut(where, 80)}: {_cut(fault['msg'], 300)}, given {_cut(repr(fault['input']), 80)}{more}"


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 3] + "..."
