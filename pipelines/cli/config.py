"""``asyncflow config``: one of its three subverbs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from pipelines.cli.flags import given_flags
from pipelines.cli.options import ProcessOptions, base_layers, parse, peek
from schemas.checks import check, problems
from schemas.config import from_layers
from schemas.errors import ConfigError
from schemas.layers import Layer, origins
from schemas.suggestions import did_you_mean

if TYPE_CHECKING:
    from pipelines.settings import Difference, Settings

_ABOUT = """Shows, compares and checks configurations: TOML files, runs, presets, or the defaults, with flags over them.

  asyncflow config show    every value, and where it came from
  asyncflow config diff    what differs between two of them
  asyncflow config check   what the numbers come to together, and whether that can work

Each has --help and --json. A source is a TOML file, the directory or name of a run, a preset (also as preset:NAME),
or defaults. Examples:

  asyncflow config show --preset gpu-1 --learner.steps 1000
  asyncflow config diff preset:demo runs/demo
  asyncflow config check run.toml --ranks 4
"""
_SHOW = """Prints a configuration as TOML, with the origin of each value as a comment: default, file and line, or flag.

What it prints can be loaded again; passwords are shown as where they are. Examples:

  asyncflow config show run.toml
  asyncflow config show --preset cpu-small --keys learner rollout.group_size
"""
_DIFF = """Prints every value in which two configurations differ, or one and the defaults. Exit code 1 if any does.

Example:

  asyncflow config diff preset:cpu-small runs/mine
"""
_CHECK = """Prints what the numbers of a configuration come to together, each formula with the numbers filled in.

Exit code 2 if one of them cannot work; warnings are no faults. Example:

  asyncflow config check --preset gpu-8 --ranks 4 --learner.groups-per-step 64
"""


_SOURCE = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]


@dataclass(frozen=True)
class ConfigShowOptions(ProcessOptions):
    """Arguments of ``config show``."""

    source: _SOURCE = None
    """TOML file, directory or name of a run, preset, or defaults; instead of --config and --preset."""
    keys: tuple[str, ...] = ()
    """Only these keys and sections, such as learner or rollout.group_size."""
    json: bool = False
    """Print JSON: value and origin of each dotted key."""


@dataclass(frozen=True)
class ConfigDiffOptions:
    """Arguments of ``config diff``."""

    one: tyro.conf.Positional[str]
    """TOML file, directory or name of a run, preset, or defaults."""
    other: tyro.conf.Positional[str] = "defaults"
    """The same."""
    json: bool = False
    """Print a JSON list."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


@dataclass(frozen=True)
class ConfigCheckOptions(ProcessOptions):
    """Arguments of ``config check``."""

    source: _SOURCE = None
    """TOML file, directory or name of a run, preset, or defaults; instead of --config and --preset."""
    ranks: int = 1
    """Processes that the learner is to have."""
    json: bool = False
    """Print a JSON list."""


OptionsT = TypeVar("OptionsT", ConfigShowOptions, ConfigCheckOptions)


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(_ABOUT)
        return 0 if arguments else 2
    subverbs = {"show": _show, "diff": _diff, "check": _check}
    word, *rest = arguments
    if word not in subverbs:
        raise ConfigError(f"no subverb {word!r}; {did_you_mean(word, subverbs)}")
    return subverbs[word](rest)


def _show(arguments: list[str]) -> int:
    from pipelines.settings import chosen, render

    options, settings = _settings(ConfigShowOptions, "config show", arguments, _SHOW)
    values = chosen(settings, options.keys)
    if options.json:
        _print_json({key: {"value": value, "origin": origin} for key, (value, origin) in values.items()})
    else:
        sys.stdout.write(render(values))
    return 0


def _diff(arguments: list[str]) -> int:
    from pipelines.settings import differences, named_layers, settle

    options = parse(ConfigDiffOptions, "config diff", arguments, _DIFF)
    one, other = (settle(named_layers(source), source) for source in (options.one, options.other))
    found = differences(one, other)
    if options.json:
        _print_json([each._asdict() for each in found])
    else:
        sys.stdout.write("".join(f"{_told(each)}\n" for each in found))
    return 1 if found else 0


def _told(each: "Difference") -> str:
    from pipelines.settings import in_toml

    one, other = (
        f"{in_toml(value)} ({origin})"
        for value, origin in ((each.one, each.one_origin), (each.other, each.other_origin))
    )
    return f"{each.key}: {one} | {other}"


def _check(arguments: list[str]) -> int:
    options, settings = _settings(ConfigCheckOptions, "config check", arguments, _CHECK)
    if options.ranks < 1:
        raise ConfigError(f"--ranks {options.ranks}: expected 1 or more")
    found = check(settings.config, options.ranks)
    if options.json:
        _print_json([each._asdict() for each in found])
    else:
        for each in found:
            remedy = f"\n         {each.remedy}" if each.remedy else ""
            sys.stdout.write(f"{each.verdict:<8} {each.name}: {each.formula}{remedy}\n")
    return 2 if problems(found) else 0


def _settings(kind: type[OptionsT], verb: str, arguments: list[str], description: str) -> "tuple[OptionsT, Settings]":
    """The arguments, and the configuration that they amount to."""
    from pipelines.settings import Settings, named_layers

    source = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if source is not None and (peek(arguments, "--config") or peek(arguments, "--preset")):
        raise ConfigError(f"{source} and --config or --preset: give the one configuration that is meant")
    layers = named_layers(source) if source is not None else base_layers(arguments)
    default = kind(source=source, run=from_layers(layers, source or _source_of(layers)))
    options = parse(kind, verb, arguments, description, default)
    if options.source is not None and source is None:  # behind flags: only now it is known for what it is
        rest: list[str] = list(arguments)
        rest.remove(options.source)
        return _settings(kind, verb, [options.source, *rest], description)
    flags = {_key(flag): f"flag {flag}" for flag in given_flags(type(options.run), arguments)}
    return options, Settings(options.run, {**origins(layers), **flags})


def _source_of(layers: list[Layer]) -> str:
    return layers[-1].source if layers else "of the flags"


def _key(flag: str) -> str:
    """The dotted key of a flag. Example: ``weights.delta`` of ``--weights.no-delta``."""
    *sections, name = flag.removeprefix("--").replace("-", "_").split(".")
    return ".".join([*sections, name.removeprefix("no_")])


def _print_json(found: object) -> None:
    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
