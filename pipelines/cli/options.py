"""From a configuration file and flags over it to a ``RunConfig``."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import tyro
from pydantic import ValidationError

from schemas.config import RunConfig, explain, load
from schemas.errors import ConfigError

Options = TypeVar("Options")

_CLOSE: Final = 0.8


@dataclass(frozen=True)
class ProcessOptions:
    """Arguments of every process of a run."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the configuration; flags override it."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True)
class StartOptions(ProcessOptions):
    """Arguments of a process that can be rehearsed."""

    dry_run: bool = False
    """Say what would be started where, what it needs and what is wrong (exit code 2), and start and write nothing."""


def parse(
    kind: type[Options], verb: str, arguments: Sequence[str], description: str, default: Options | None = None
) -> Options:
    """Reads the arguments of a verb; a wrong one ends the process with a message and exit code 2.

    Raises:
        ConfigError: values that contradict each other.
    """
    with _contradictions_told():
        options = tyro.cli(
            kind, prog=f"asyncflow {verb}", args=list(arguments), description=description, default=default
        )
    assert isinstance(options, kind)
    return options


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
    with _contradictions_told():
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
def _contradictions_told() -> Iterator[None]:
    """Tyro reports what is wrong with one value, but not what several are together."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def base_config(arguments: Sequence[str]) -> RunConfig:
    """The configuration that flags are laid over: the file's, or the defaults.

    Raises:
        ConfigError: the file is wrong.
    """
    file = peek(arguments, "--config")
    return load(Path(file)) if file else RunConfig()


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of one flag, before all of them are read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, dest="value", nargs="?")
    try:
        value: str | None = parser.parse_known_args(list(arguments))[0].value
    except argparse.ArgumentError:
        return None  # the real parser says what is wrong
    return value


def flags_of(tree: dict[str, Any], prefix: str = "--") -> list[str]:
    """The dotted flags of a configuration tree. Example: ``["--name", "--kafka.bootstrap"]``."""
    flags: list[str] = []
    for key, value in tree.items():
        flags += flags_of(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return flags


def _refuse_misspelt(flag: str) -> None:
    name = flag.partition("=")[0]
    if not name.startswith("--"):
        return
    ours = ["--config", "--debug", "--dry-run", *flags_of(RunConfig().model_dump())]
    near = get_close_matches(name.replace("-", "_"), [each.replace("-", "_") for each in ours], n=1, cutoff=_CLOSE)
    if "." in name or near:
        hint = f"; did you mean --{near[0].strip('_')}?" if near else ""
        raise ConfigError(f"unknown flag {name}{hint}")
