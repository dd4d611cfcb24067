"""Tables of data sets, row by row; what is wrong with a row is said with its file and line.

file.jsonl ──► an object a line
file.csv   ──► cells, quoted where they must be   ──► Row ──text, word──► what a task asks and the right answer
file.tsv   ──► cells between tabs, never quoted
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from schemas.errors import ConfigError


class _Tabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE


class Source(NamedTuple):
    """A file below the directory of the data. Example: ``Source("sst2/dev.tsv")``."""

    name: str
    """Its ending says the form: ``.jsonl``, ``.csv``, or ``.tsv`` and ``.txt`` for tabs."""
    columns: tuple[str, ...] = ()
    """Names of the cells in a file without a line of names; empty where the first line names them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Example: ``Row("sst2/dev.tsv, line 2", {"label": "0", "sentence": "long and dull ."})``."""

    where: str
    """File and line, for complaints."""
    values: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The text under the first of the names that the row has, without white space around it.

        Raises:
            ConfigError: there is none, or it is blank.
        """
        found = next((self.values[name] for name in names if name in self.values), None)
        if not isinstance(found, str) or not found.strip():
            raise ConfigError(f"{self.where}: {names[0]} is {_shown(found)}, expected text")
        return found.strip()

    def word(self, name: str, words: Mapping[str, str]) -> str:
        """The word for what stands under a name, letter case aside.

        Raises:
            ConfigError: there is none for it.
        """
        found = self.values.get(name)
        key = str(found).strip().lower()
        if key not in words:
            raise ConfigError(f"{self.where}: {name} is {_shown(found)}, expected one of {', '.join(words)}")
        return words[key]

    def number(self, name: str, lowest: float, highest: float) -> float:
        """The number under a name.

        Raises:
            ConfigError: there is none, or it is outside of its range.
        """
        found = self.values.get(name)
        try:
            number = float(str(found))
        except ValueError:
            number = float("nan")
        if not lowest <= number <= highest:
            raise ConfigError(f"{self.where}: {name} is {_shown(found)}, expected {lowest:g} to {highest:g}")
        return number

    def place(self, name: str, length: int) -> int:
        """The number of a character, from 0, in a text that is so long.

        Raises:
            ConfigError: it is none.
        """
        found = self.values.get(name)
        if not isinstance(found, int) or not 0 <= found < length:
            raise ConfigError(f"{self.where}: {name} is {_shown(found)}, expected a place in {length} characters")
        return found

    def part(self, name: str) -> "Row":
        """The object under a name.

        Raises:
            ConfigError: there is none.
        """
        return self._as_row(self.values.get(name), name)

    def parts(self, name: str) -> "list[Row]":
        """The objects of the list under a name.

        Raises:
            ConfigError: there is no list, it is empty, or holds something else.
        """
        found = self.values.get(name)
        if not isinstance(found, list) or not found:
            raise ConfigError(f"{self.where}: {name} is {_shown(found)}, expected a list with something in it")
        return [self._as_row(each, f"{name}[{index}]") for index, each in enumerate(found)]

    def _as_row(self, value: object, name: str) -> "Row":
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}: {name} is {_shown(value)}, expected an object")
        return Row(self.where, value)


def read(data: Path, source: Source) -> Iterator[Row]:
    """The rows of a file in UTF-8, in its order; blank lines are none.

    Raises:
        ConfigError: the file cannot be read, or a line is not what its ending promises.
    """
    file = data / source.name
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            yield from _objects(lines, file) if file.suffix == ".jsonl" else _cells(lines, file, source.columns)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}; expected rows in UTF-8") from error


def _objects(lines: Iterable[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        if line.strip():
            yield Row(where, _object(line, where))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}; expected JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {_shown(value)}, expected an object")
    return value


def _cells(lines: TextIO, file: Path, columns: Sequence[str]) -> Iterator[Row]:
    form: type[csv.Dialect] = csv.excel if file.suffix == ".csv" else _Tabs
    table = csv.reader(lines, form, strict=True)
    try:
        names = columns or next(table, [])
        for cells in filter(None, table):
            where = f"{file}, line {table.line_num}"
            if len(cells) != len(names):
                raise ConfigError(f"{where}: {len(cells)} cells, expected {len(names)}: {', '.join(names)}")
            yield Row(where, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{file}, line {table.line_num}: {error}") from error


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:80]
