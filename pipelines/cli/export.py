"""``asyncflow export``."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pipelines.cli.options import parse
from schemas.config import RunConfig
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.export import Exported
    from pipelines.export_samples import ExportedSamples

_DESCRIPTION = """Writes the weights of a run as a directory that transformers and vLLM load, or its samples.

With --samples the answers of the run are written as Parquet files with a dataset card, each answer with its reward,
the step that trained it or why none did, and its advantage; a live run is written as far as it is.

The version is verified against its announcement, copied, and read back; an adapter is added to its model. Prints one
JSON object. Name the run by its directory or name, or by a configuration file; the log of a finished run is served for
the time. Examples:

  asyncflow export --run demo --to models/demo
  asyncflow export --run demo --version best --to models/demo-best
  asyncflow export --run demo --adapter --to adapters/demo
  asyncflow export --run demo --samples --to data/demo
"""


@dataclass(frozen=True)
class ExportOptions:
    """Arguments of the verb."""

    to: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the model goes: a directory that does not exist, or is empty. Required."""
    samples: bool = False
    """Write the samples of the run, as a data set, instead of weights."""
    version: str = "newest"
    """newest, best (by evaluation), or the number of a weight version."""
    adapter: bool = False
    """Write the adapter as it is, for peft and vLLM, instead of the model that it was added to."""
    run: str | None = None
    """Directory or name of the run."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of --run."""
    evaluation: str | None = None
    """Name of the evaluation that says which version is the best; by default that of the configuration."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    json: bool = False
    """Taken, so that programs can say it everywhere: what is printed is JSON in any case."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(ExportOptions, "export", arguments, _DESCRIPTION)
    if options.to is None:
        raise ConfigError("--to DIR is missing: give a directory that does not exist yet")
    exported = _samples(options, options.to) if options.samples else _weights(options, options.to)
    sys.stdout.write(f"{exported.model_dump_json(indent=2)}\n")
    return 0


def _samples(options: ExportOptions, target: Path) -> "ExportedSamples":
    from pipelines.export_samples import export_samples

    if (options.version, options.adapter, options.evaluation) != ("newest", False, None):
        raise ConfigError("--version, --adapter and --evaluation are about weights: leave them out, or --samples")
    with _served(options) as config:
        return export_samples(config, target)


def _weights(options: ExportOptions, target: Path) -> "Exported":
    from pipelines.export import export, parse_version

    wanted = parse_version(options.version)
    with _served(options) as config:
        served = _with_evaluation(config, options.evaluation)
        return export(served, wanted, target, as_adapter=options.adapter)


def _served(options: ExportOptions) -> AbstractContextManager[RunConfig]:
    from pipelines.runs import served

    return served(options.run, options.bootstrap, options.config, flag="--run")


def _with_evaluation(config: RunConfig, name: str | None) -> RunConfig:
    if name is None:
        return config
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"name": name})})
