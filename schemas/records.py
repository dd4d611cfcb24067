"""The base of every record that travels as JSON."""

import json
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from schemas.errors import RecordError


def now() -> datetime:
    """The present instant, in UTC."""
    return datetime.now(UTC)


def isoformat(instant: datetime) -> str:
    """``2026-01-31T12:00:00.000Z``: milliseconds, UTC, as in the exact forms of the records."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Instant = Annotated[
    AwareDatetime,
    AfterValidator(lambda instant: instant.astimezone(UTC)),
    PlainSerializer(isoformat, return_type=str, when_used="json"),
]
"""A moment with a time zone, written in UTC with milliseconds."""


class Record(BaseModel):
    """A JSON record of a topic.

    ``schema`` is the version of its form; unknown keys are ignored, so that a newer writer may add some.
    """

    model_config = ConfigDict(populate_by_name=True, extra="ignore", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")

    def encode(self) -> bytes:
        """The record's value, UTF-8 JSON."""
        return self.model_dump_json(by_alias=True, exclude_unset=False).encode()

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Reads a record's value.

        Raises:
            RecordError: ``not_json`` or ``bad_record``, with the first fault in words.
        """
        try:
            json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RecordError("not_json", f"{error}; the value starts with {value[:40]!r}") from error
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            raise RecordError("bad_record", first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: where, what is wrong, what was given."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "record"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {fault['msg']}, given {_short(fault['input'])}{more}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
