"""What a configuration amounts to, where each value came from, and how two of them differ.

defaults ◄ preset ◄ files ◄ flags ──► Settings: a RunConfig, and for each dotted key its origin
                                         ├──► render    TOML with the origins as comments
                                         └──► differences
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import tomli_w

from pipelines.local.paths import DEFAULT_RUNS
from pipelines.presets import preset_layer, preset_names
from pipelines.runs import CONFIG_NAME, known_runs
from schemas.config import RunConfig, from_layers
from schemas.errors import ConfigError
from schemas.layers import Layer, leaves, origins, read_layers
from schemas.secrets import masked
from schemas.suggestions import did_you_mean, nearest_path

DEFAULTS: Final = "defaults"
_PRESET: Final = "preset:"
_DEFAULT: Final = "default"
_COLUMNS: Final = 44
"""Where origins begin, after shorter values."""


@dataclass(frozen=True)
class Settings:
    """A configuration, and where its values came from.

    Attributes:
        config: checked.
        origins: of the dotted keys that were written somewhere, such as ``base.toml:3``; the others have their default.
    """

    config: RunConfig
    origins: Mapping[str, str]

    def values(self) -> dict[str, tuple[Any, str]]:
        """Value and origin of every dotted key, secrets hidden; null where nothing is set."""
        tree = leaves(masked(self.config.model_dump(mode="json")))
        return {key: (value, self._origin(key)) for key, value in tree.items()}

    def _origin(self, key: str) -> str:
        """A table that was given whole is written at the places of its values."""
        below = [place for other, place in self.origins.items() if other.startswith(f"{key}.")]
        return self.origins.get(key) or (below[0] if below else _DEFAULT)


class Difference(NamedTuple):
    """A dotted key whose values differ. A value and its origin are null where the key is not there at all."""

    key: str
    one: Any
    one_origin: str
    other: Any
    other_origin: str


def named_layers(source: str) -> list[Layer]:
    """What a name stands for: a TOML file, a run's directory or name, a preset, or the defaults.

    Raises:
        ConfigError: it is none of them, or its file is wrong.
    """
    if source == DEFAULTS:
        return []
    if source.startswith(_PRESET):
        return [preset_layer(source.removeprefix(_PRESET))]
    for file in (Path(source), Path(source) / CONFIG_NAME, DEFAULT_RUNS / source / CONFIG_NAME):
        if file.is_file():
            return read_layers(file)
    if source in preset_names():
        return [preset_layer(source)]
    known = [DEFAULTS, *preset_names(), *known_runs()]
    raise ConfigError(f"{source!r} is no file, no run and no preset; {did_you_mean(source, known)}")


def settle(layers: Sequence[Layer], source: str) -> Settings:
    """The configuration of files that are laid over each other.

    Raises:
        ConfigError: a key or value is wrong.
    """
    return Settings(from_layers(layers, source), origins(layers))


def differences(one: Settings, other: Settings) -> list[Difference]:
    """Every key whose values differ, in the order of the configuration."""
    left, right = one.values(), other.values()
    nothing = (None, "not set")
    pairs = ((key, left.get(key, nothing), right.get(key, nothing)) for key in {**left, **right})
    return [Difference(key, *mine, *theirs) for key, mine, theirs in pairs if mine[0] != theirs[0]]


def chosen(settings: Settings, keys: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Values and origins of some keys and sections, or of all.

    Raises:
        ConfigError: there is no such key.
    """
    values = settings.values()
    for key in keys:
        if not any(_is_below(name, key) for name in values):
            near = nearest_path(key, [*_sections(values), *values])
            raise ConfigError(f"no key {key!r}; " + (f"did you mean {near}?" if near else "config show lists them"))
    return {name: value for name, value in values.items() if not keys or any(_is_below(name, key) for key in keys)}


def _is_below(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _sections(names: Iterable[str]) -> list[str]:
    found = {name.rpartition(".")[0] for name in names}
    return sorted(section for section in found if section)


def render(values: Mapping[str, tuple[Any, str]]) -> str:
    """TOML that can be loaded again, the origin of each value behind it. What is not set is a comment."""
    lines: list[str] = []
    for section, keys in _by_section(values).items():
        lines += ["", f"[{section}]"] if section and lines else [f"[{section}]"] if section else []
        lines += [_line(key, *values[f"{section}.{key}" if section else key]) for key in keys]
    return "".join(f"{line}\n" for line in lines)


def _by_section(names: Iterable[str]) -> dict[str, list[str]]:
    """Keys without a section come first: TOML counts what follows a table's head to it."""
    sections: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: "." in name):
        section, _, key = name.rpartition(".")
        sections.setdefault(section, []).append(key)
    return sections


def _line(key: str, value: Any, origin: str) -> str:
    if value is None:
        return f"# {key} is not set"
    written = in_toml(value)
    return f"{tomli_key(key)} = {written}".ljust(_COLUMNS) + f"  # {origin}"


def in_toml(value: Any) -> str:
    """A value as TOML writes it, on one line. Null is ``null``, which TOML lacks."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{tomli_key(key)} = {in_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def tomli_key(key: str) -> str:
    """A key as TOML writes it, with quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
