"""From presets, a configuration file and flags over it to a ``RunConfig``.

--preset NAME ──► --config FILE and what it includes ──► flags ──► RunConfig
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TypeVar

import tyro
from pydantic import ValidationError

from pipelines.cli.flags import flags_of, refuse_unknown
from pipelines.presets import preset_layer
from schemas.complaints import explain
from schemas.config import RunConfig, from_layers
from schemas.errors import ConfigError
from schemas.layers import Layer, read_layers
from schemas.sections import Section
from schemas.suggestions import nearest

Options = TypeVar("Options")

_CLOSE: Final = 0.8


@dataclass(frozen=True)
class ProcessOptions:
    """Arguments of every process of a run."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the configuration; flags override it."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Configuration to start from: cpu-small, demo, gpu-1, gpu-8 or live-feedback; --config and flags override it."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True)
class StartOptions(ProcessOptions):
    """Arguments of a process that can be rehearsed."""

    dry_run: bool = False
    """Say what would be started where, what it needs and what is wrong (exit code 2), and start and write nothing."""


def parse(  # noqa: PLR0913 - what verbs differ in
    kind: type[Options], verb: str, arguments: Sequence[str], description: str, default: Options | None = None, *,
    root: type[Section] = RunConfig,
) -> Options:  # fmt: skip
    """Reads the arguments of a verb; a wrong one ends the process with a message and exit code 2.

    Args:
        kind: class of the arguments.
        verb: as it is called.
        arguments: as they were given.
        description: for --help.
        default: what flags are laid over.
        root: the configuration among them.

    Raises:
        ConfigError: a flag or a choice that does not exist, or values that contradict each other.
    """
    with _contradictions_told(root), _misspelt_told(kind, arguments):
        options = tyro.cli(
            kind, prog=f"asyncflow {verb}", args=list(arguments), description=description, default=default
        )
    assert isinstance(options, kind)
    return options


@contextmanager
def _misspelt_told(kind: type, arguments: Sequence[str], *, others: bool = False) -> Iterator[None]:
    """Where tyro refuses the arguments, a word that looks misspelt is told in its stead."""
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            yield
    except SystemExit as error:
        if error.code:
            refuse_unknown(kind, arguments, others=others)
        sys.stderr.write(told.getvalue())
        raise
    sys.stderr.write(told.getvalue())


def parse_process(verb: str, arguments: Sequence[str], description: str) -> RunConfig:
    """The configuration that a process's arguments amount to.

    Raises:
        ConfigError: the configuration file is wrong, or values contradict each other.
    """
    default = ProcessOptions(run=base_config(arguments))
    return parse(ProcessOptions, verb, arguments, description, default).run


def parse_start(verb: str, arguments: Sequence[str], description: str) -> StartOptions:
    """As :func:`parse_process`, of a verb that can be rehearsed.

    Raises:
        ConfigError: the configuration file is wrong, or values contradict each other.
    """
    return parse(StartOptions, verb, arguments, description, StartOptions(run=base_config(arguments)))


def parse_start_and_rest(verb: str, arguments: Sequence[str], description: str) -> tuple[StartOptions, list[str]]:
    """As :func:`parse_start`; arguments that are not ours are returned as they are.

    Raises:
        ConfigError: also an unknown argument that looks like a misspelt one of ours.
    """
    with _contradictions_told(), _misspelt_told(StartOptions, arguments, others=True):
        options, rest = tyro.cli(
            StartOptions,
            prog=f"asyncflow {verb}",
            args=list(arguments),
            description=description,
            default=StartOptions(run=base_config(arguments)),
            return_unknown_args=True,
        )
    for flag in rest:
        _refuse_misspelt(flag)
    return options, rest


@contextmanager
def _contradictions_told(root: type[Section] = RunConfig) -> Iterator[None]:
    """Tyro reports what is wrong with one value, but not what several are together."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(explain(error, root)) from error


def base_config(arguments: Sequence[str]) -> RunConfig:
    """The configuration that flags are laid over: the preset's and the file's, or the defaults.

    Raises:
        ConfigError: there is no such preset, or the file is wrong.
    """
    return from_layers(base_layers(arguments), peek(arguments, "--config") or "of the preset")


def base_layers(arguments: Sequence[str]) -> list[Layer]:
    """The preset, the files that the file includes, and the file; later ones win.

    Raises:
        ConfigError: there is no such preset, or a file cannot be read.
    """
    preset, file = peek(arguments, "--preset"), peek(arguments, "--config")
    return [*([preset_layer(preset)] if preset else []), *(read_layers(Path(file)) if file else [])]


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of one flag, before all of them are read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, dest="value", nargs="?")
    try:
        value: str | None = parser.parse_known_args(list(arguments))[0].value
    except argparse.ArgumentError:
        return None  # the real parser says what is wrong
    return value


def _refuse_misspelt(flag: str) -> None:
    name = flag.partition("=")[0]
    if not name.startswith("--"):
        return
    near = nearest(name, [each.name for each in flags_of(StartOptions)], cutoff=_CLOSE)
    if "." in name or near:
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"unknown flag {name}{hint}")
