"""Writing prompts to a run, as any producer can, or to a file."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pipelines.append import Entry, append
from schemas.config import RunConfig
from schemas.errors import ConfigError, RecordError
from schemas.limits import MAX_PROMPTS_MESSAGE_BYTES
from schemas.prompts import Prompt

_LONGEST_LINE_BYTES: Final = MAX_PROMPTS_MESSAGE_BYTES - 4096  # Kafka adds the key, headers and framing
LOOKED_AT: Final = 1000
"""Prompts of a file that are checked before a stack is started for it."""


def submit(config: RunConfig, lines: Iterable[bytes]) -> int:
    """Writes every line to the prompts topic as it is, over its partitions in turn.

    Returns:
        How many were written, all of them acknowledged.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the topic.
    """
    from pipelines.local.topics import topic_partitions

    partitions, topic = topic_partitions(config.kafka, config.topics.prompts), config.topics.prompts
    entries = (Entry(line, key_of(line), index % partitions) for index, line in enumerate(lines))
    return append(config.kafka, topic, entries, "the prompts")


def has_prompts(config: RunConfig) -> bool:
    """Whether anything was ever written to the prompts topic.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the topic.
    """
    from pipelines.log import TopicReader

    reader = TopicReader(config.kafka, config.topics.prompts)
    try:
        return any(reader.ends().values())
    finally:
        reader.close()


def write_lines(file: Path, lines: Iterable[bytes]) -> int:
    """Writes prompts to a file of JSON lines, whole or not at all, and returns how many.

    Raises:
        ConfigError: the file exists, or cannot be made.
        OSError: there is no room for it.
    """
    given = list(lines)
    try:
        written = file.open("xb")
    except FileExistsError as error:
        raise ConfigError(f"--out {file} exists; give a file that does not exist yet") from error
    except OSError as error:
        raise ConfigError(f"--out {file}: {error.strerror}; give a place that can be written") from error
    try:
        with written:
            written.writelines(line + b"\n" for line in given)
    except BaseException:  # also Ctrl-C: a part would pass for all
        file.unlink(missing_ok=True)
        raise
    return len(given)


def read_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file without their ends, blank ones left out. All are looked at before the first is given.

    Raises:
        ConfigError: the file cannot be read, or a line is longer than the prompts topic takes.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompts {file}: {error.strerror}; give a file of JSON lines") from error
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if len(line) > _LONGEST_LINE_BYTES:
            raise ConfigError(
                f"prompts {file}, line {number}: {len(line)} bytes, the topic takes {_LONGEST_LINE_BYTES}; shorten it"
            )
    yield from (line.rstrip(b"\r") for line in lines if line.strip())


def find_unusable(lines: Iterable[bytes]) -> list[str]:
    """Which prompts will become dead letters as they are, in words; rewards and environments have been loaded.

    Only the first thousand are looked at.
    """
    from transforms.environments import registry as environments
    from transforms.rewards import registry as rewards

    found: list[str] = []
    for number, line in enumerate(islice(lines, LOOKED_AT), start=1):
        try:
            prompt = Prompt.decode(line)
            rewards.check(prompt.function or prompt.reward)
            if prompt.environment:
                environments.check(prompt.environment)
        except RecordError as error:
            found.append(f"prompt {number}: {error}")
    return found


def key_of(line: bytes) -> bytes | None:
    """The record's key: the prompt's id, if there is one to be seen."""
    try:
        prompt: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    identity = prompt.get("prompt_id") if isinstance(prompt, dict) else None
    return identity.encode(errors="replace") if isinstance(identity, str) else None
