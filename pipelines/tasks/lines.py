"""Files of JSON, row by row, compressed by gzip if they are named so: what data sets of problems are published as.

A row is a pydantic model of the columns that a task reads; columns that it does not name are not looked at. What does
not fit is said once, with the file and the line.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from schemas.errors import ConfigError
from schemas.records import first_fault


class Row(BaseModel):
    """Base of a row: a number stays a number, and other columns are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


RowT = TypeVar("RowT", bound=Row)


def read_lines(file: Path, row: type[RowT]) -> Iterator[tuple[int, RowT]]:
    """Rows of a file of JSON lines, blank ones left out, each with its line, from 1.

    Raises:
        ConfigError: the file cannot be read, or a line is not such a row.
    """
    for number, line in enumerate(_content(file).split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, row.model_validate_json(line)
            except ValidationError as error:
                raise ConfigError(f"{file}, line {number}: {first_fault(error)}") from error


def read_list(file: Path, row: type[RowT]) -> Iterator[tuple[int, RowT]]:
    """Rows of a file that is one JSON list, each with its place in the list, from 0.

    Raises:
        ConfigError: the file cannot be read, or is not a list of such rows.
    """
    try:
        rows = TypeAdapter(list[row]).validate_json(_content(file))  # type: ignore[valid-type]
    except ValidationError as error:
        raise ConfigError(f"{file}, counted from 0: {first_fault(error)}; expected a list of rows") from error
    return enumerate(rows)


def _content(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}; expected JSON") from error
