"""TOML files that include each other: one tree of values, and where each of them was written.

    FILE ──► what it includes, in that order ──► itself ──► layers ──► merge ──► tree
                                                               └────► origins ──► "learner.steps" at base.toml:3

A file begins with ``include = ["base.toml"]`` to start from others; paths are relative to the file that names them.
What comes later wins: tables are merged, key by key, and everything else is replaced.
"""

import tomllib
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

from schemas.errors import ConfigError

INCLUDE: Final = "include"
Tree = dict[str, Any]


class Layer(NamedTuple):
    """One file, or what stands for one."""

    source: str
    """As a message names it, such as ``base.toml`` or ``preset cpu-small``."""
    text: str
    """TOML."""
    tree: Tree
    """What the text says, without ``include``."""


def read_layers(path: Path) -> list[Layer]:
    """A TOML file after all that it includes; later ones win.

    Raises:
        ConfigError: a file cannot be read, is not TOML, or includes itself.
    """
    return list(_read(path, ()))


def layer_of(source: str, text: str) -> Layer:
    """What a text says.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return Layer(source, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {source}: not TOML: {error}") from error


def _read(path: Path, above: tuple[Path, ...]) -> Iterator[Layer]:
    whole = path.resolve()
    if whole in above:
        ring = " → ".join(each.name for each in (*above[above.index(whole) :], whole))
        raise ConfigError(f"configuration {path} includes itself: {ring}; take one of these includes out")
    layer = _read_one(path)
    included = layer.tree.pop(INCLUDE, [])
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise ConfigError(
            f'configuration {path}: include = {included!r}, expected files, as in include = ["base.toml"]'
        )
    for name in included:
        yield from _read(path.parent / name, (*above, whole))
    yield layer


def _read_one(path: Path) -> Layer:
    try:
        return layer_of(str(path), path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path}: {error.strerror}; give an existing TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path}: not TOML: {error}") from error


def merge(layers: Iterable[Layer]) -> Tree:
    """What all layers say together; later ones win."""
    merged: Tree = {}
    for layer in layers:
        _lay_over(merged, layer.tree)
    return merged


def _lay_over(under: Tree, over: Tree) -> None:
    for key, value in over.items():
        below = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            _lay_over(below, value)
        else:
            under[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, dict) else value


def leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key. An empty table is one too."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def origins(layers: Iterable[Layer]) -> dict[str, str]:
    """Where the value of each dotted key was written last. Example: ``{"learner.steps": "base.toml:3"}``."""
    found: dict[str, str] = {}
    for layer in layers:
        found |= {key: f"{layer.source}:{line}" for key, line in lines_of(layer.text).items()}
    return found


def lines_of(text: str) -> dict[str, int]:
    """The line, counted from 1, at which each dotted key of a TOML text is written.

    TOML has no shorter rule for where a value begins: the text is parsed up to each line's end, and a key that was not
    there before began where the parser last understood everything.
    """
    found: dict[str, int] = {}
    lines = text.splitlines(keepends=True)
    start = 1
    for number, above in enumerate(accumulate(lines), start=1):
        try:
            keys = leaves(tomllib.loads(above))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value
        found |= {key: start for key in keys if key not in found}
        start = number + 1 + _blank(lines[number:])
    return found


def _blank(lines: list[str]) -> int:
    """How many lines at the start say nothing."""
    for count, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            return count
    return len(lines)
