"""``asyncflow submit``."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from pipelines.cli.options import parse
from schemas.config import RunConfig, load
from schemas.errors import BrokerError, ConfigError
from schemas.limits import MAX_PROMPTS_MESSAGE_BYTES

_LONGEST_LINE_BYTES: Final = MAX_PROMPTS_MESSAGE_BYTES - 4096  # Kafka adds the key, headers and framing
_DESCRIPTION = """Writes the prompts of a JSON-lines file to a run and prints how many.

Each line is written as it is: one that is no valid prompt becomes a dead letter of the run. Name the run by its
directory or name, or by a configuration file. Examples:

  asyncflow submit prompts.jsonl --run demo
  asyncflow submit prompts.jsonl --run prod --bootstrap kafka-1:9092
"""


@dataclass(frozen=True)
class SubmitOptions:
    """Arguments of the verb."""

    file: tyro.conf.Positional[Path]
    """JSON lines in the form of the prompts topic."""
    run: str | None = None
    """Directory or name of the run."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of --run."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(SubmitOptions, "submit", arguments, _DESCRIPTION)
    count = submit_file(_find_run(options), options.file)
    sys.stdout.write(f"{count} prompts\n")
    return 0


def submit_file(config: RunConfig, file: Path) -> int:
    """Writes every line that is not blank to the prompts topic, over its partitions in turn.

    Returns:
        How many were written, all of them acknowledged.

    Raises:
        ConfigError: the file cannot be read, or a line is longer than the topic takes.
        BrokerError: Kafka cannot be reached, or does not have the topic.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    from pipelines.local.topics import topic_partitions

    lines = list(read_lines(file))
    partitions = topic_partitions(config.kafka, config.topics.prompts)
    producer = KafkaProducer(**config.kafka.producer_options())
    try:
        sent = [
            producer.send(config.topics.prompts, line, key=key_of(line), partition=index % partitions)
            for index, line in enumerate(lines)
        ]
        for each in sent:
            each.get(timeout=config.kafka.request_timeout_s)
    except KafkaError as error:
        raise BrokerError(f"Kafka at {config.kafka.bootstrap} did not take the prompts: {error!r}") from error
    finally:
        producer.close()
    return len(sent)


def read_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file without their ends, blank ones left out.

    Raises:
        ConfigError: the file cannot be read, or a line is longer than the prompts topic takes.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompts {file}: {error.strerror}; give a file of JSON lines") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if len(line) > _LONGEST_LINE_BYTES:
            raise ConfigError(
                f"prompts {file}, line {number}: {len(line)} bytes, and the topic takes {_LONGEST_LINE_BYTES}; shorten it"
            )
        if line.strip():
            yield line.rstrip(b"\r")


def key_of(line: bytes) -> bytes | None:
    """The record's key: the prompt's id, if there is one to be seen."""
    try:
        prompt: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    identity = prompt.get("prompt_id") if isinstance(prompt, dict) else None
    return identity.encode(errors="replace") if isinstance(identity, str) else None


def _find_run(options: SubmitOptions) -> RunConfig:
    from pipelines.runs import find_config

    if (options.run is None) == (options.config is None):
        raise ConfigError("name the run by exactly one of --run and --config")
    if options.run is not None:
        return find_config(options.run, options.bootstrap)[0]
    assert options.config is not None
    config = load(options.config)
    kafka = config.kafka.model_copy(update={"bootstrap": options.bootstrap or config.kafka.bootstrap})
    return config.model_copy(update={"kafka": kafka})
