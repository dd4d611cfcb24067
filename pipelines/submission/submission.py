"""What is handed to which runner, with the options that were given and those that were chosen.

    --runner=FlinkRunner --parallelism=2 ──► read ──► Submission("rollout", "flink", {"parallelism": "2"}, {…})

An option that was given wins over one that was chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Literal

from pipelines.local.prism import find_prism
from pipelines.submission.chosen import Chosen, chosen_options
from schemas.config import RunConfig
from schemas.errors import ConfigError

PipelineName = Literal["rollout", "join-feedback"]

RUNNERS: Final = {
    "PrismRunner": "prism",
    "FlinkRunner": "flink",
    "DataflowRunner": "dataflow",
    "FnApiRunner": "fnapi",
    "PortableRunner": "portable",
}
"""Runners that pipelines are handed to; the last one is whatever listens at ``--job_endpoint``."""
_DEFAULT: Final = "PrismRunner"
_GUESSING: Final = ("direct", "switchingdirect", "bundlebaseddirect")
_TRUE: Final = "true"
_LISTS: Final = ("experiments",)
"""Options of which those that were chosen come to those that were given."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One pipeline for one runner."""

    pipeline: PipelineName
    runner: str
    """One of the values of ``RUNNERS``."""
    arguments: tuple[str, ...]
    """As they were given."""
    given: Mapping[str, str]
    """What they say, by name: ``true`` of an option without a value, commas between values of one that came twice."""
    chosen: Mapping[str, Chosen]
    """What nobody gave."""

    def option(self, name: str) -> str:
        """The value of an option; empty if it has none."""
        values = [self.given.get(name, ""), self.chosen[name].value if name in self.chosen else ""]
        return ",".join(filter(None, values))

    @property
    def environment(self) -> str:
        """Where workers run: ``LOOPBACK`` (in this process), ``EXTERNAL``, ``DOCKER``, ``PROCESS`` or ``DATAFLOW``."""
        if self.runner == "dataflow":
            return "DATAFLOW"
        if given := self.option("environment_type"):
            return given.upper()
        return "DOCKER" if self.runner == "portable" or self.has_cluster else "LOOPBACK"

    @property
    def works_here(self) -> bool:
        """Whether workers are threads of the process that submits: then it has the pools, and can drain them."""
        return self.environment == "LOOPBACK"

    @property
    def has_cluster(self) -> bool:
        """Whether Flink runs by itself, or is to: else a small one runs within Beam's job server."""
        named = self.option("flink_master") or "[auto]"
        return self.runner == "flink" and (self.makes_jar or not named.startswith("["))

    @property
    def makes_jar(self) -> bool:
        """Whether nothing is run: the pipeline becomes a program of Flink's, for its application mode."""
        return bool(self.option("output_executable_path"))

    @property
    def writes_template(self) -> bool:
        """Whether nothing is run: the request becomes a file, which Dataflow's launcher hands in."""
        return bool(self.option("template_location"))

    @property
    def only_writes(self) -> bool:
        """Whether the end of the submission is not that of the pipeline."""
        return self.makes_jar or self.writes_template

    def flags(self) -> list[str]:
        """For Beam.

        Raises:
            UserError: Prism is not here, and can be neither downloaded nor built.
        """
        flags = [*self.arguments, *(f"--{name}={option.value}" for name, option in self.chosen.items())]
        if "runner" not in self.given:
            flags.append(f"--runner={_DEFAULT}")
        if self.runner == "prism" and not self.option("prism_location") and not self.option("job_endpoint"):
            flags.append(f"--prism_location={find_prism()}")
        return flags


def read(pipeline: PipelineName, config: RunConfig, arguments: Sequence[str]) -> Submission:
    """Reads what was given, and chooses the rest.

    Args:
        pipeline: its verb.
        config: of the run.
        arguments: Beam's, such as ``--runner=FlinkRunner``.

    Raises:
        ConfigError: a runner that these pipelines are not for.
    """
    given = dict(_collected(arguments))
    runner = _runner(given.get("runner", _DEFAULT))
    options = chosen_options(pipeline, runner, config)
    chosen = {name: option for name, option in options.items() if name not in given or name in _LISTS}
    return Submission(pipeline, runner, tuple(arguments), given, chosen)


def _collected(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    values: dict[str, list[str]] = {}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        name, equals, attached = argument.partition("=")
        if name.startswith("--"):
            value = attached if equals else _TRUE if following.startswith("--") else following
            values.setdefault(name.removeprefix("--"), []).append(value)
    yield from ((name, ",".join(each)) for name, each in values.items())


def _runner(named: str) -> str:
    """Beam takes a runner by class or path, with or without the word runner, in any case."""
    word = named.rpartition(".")[2].lower().removesuffix("runner")
    if word in RUNNERS.values():
        return word
    if word in _GUESSING:
        raise ConfigError(
            f"--runner={named}: Beam picks one of several by itself, without a look at what a stream needs; name "
            "PrismRunner, which is also what no --runner means, or FnApiRunner"
        )
    raise ConfigError(f"--runner={named}: these pipelines are not for it; expected one of {', '.join(RUNNERS)}")
