"""``asyncflow feedback``."""

import getpass
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.cli.options import parse
from schemas.config import RunConfig, load
from schemas.errors import ConfigError, RecordError
from schemas.feedback import FeedbackKind
from schemas.identity import RolloutId

_DESCRIPTION = """Sends one judgement of an answer and prints, as JSON, what Kafka has acknowledged.

The run is the one that the answer's name begins with, unless --run or --config gives its directory or configuration.
Of what one user says of one answer the newest holds. Examples:

  asyncflow feedback demo/1048576/17/0 --thumb up --user ann
  asyncflow feedback demo/0/38/3 --prefer demo/0/38/1 --bootstrap kafka-1:9092
  asyncflow feedback demo/1048576/17/0 --correct "Bonjour le monde." --key-file receipts.key
  asyncflow feedback demo/1048576/17/0 --retract
"""


@dataclass(frozen=True)
class FeedbackOptions:
    """Arguments of the verb; exactly one judgement."""

    rollout: tyro.conf.Positional[str]
    """The answer: RUN/PARTITION/OFFSET/SAMPLE."""
    thumb: Literal["up", "down"] | None = None
    """It is good, or it is not."""
    score: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """How good it is, from -1 to 1."""
    prefer: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """The answer to the same prompt that is better than it."""
    correct: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What should have been answered."""
    retract: bool = False
    """Withdraw what the user said of it."""
    user: str | None = None
    """Who judges; by default who runs this command."""
    receipt: str | None = None
    """The proof that came with the answer."""
    key_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Issue a receipt with this key; by default that of the run's configuration (feedback.key_file), if it has one."""
    feedback_id: str | None = None
    """Name of the judgement, so that it counts once however often it is sent; by default a new one."""
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
    options = parse(FeedbackOptions, "feedback", arguments, _DESCRIPTION)
    rollout, (kind, value) = _rollout(options), judgement(options)
    config = _find_run(options, rollout)
    user = options.user or getpass.getuser()
    receipt = options.receipt or _issue(options, config, rollout, user)
    from pipelines.client import Client

    with Client(config.kafka.bootstrap, config.name, config.kafka.client) as client:
        try:
            sent = client.send_feedback(
                rollout, kind, value, user=user, receipt=receipt, feedback_id=options.feedback_id
            )  # fmt: skip
        except RecordError as error:
            raise ConfigError(error.detail) from error
    told = json.loads(sent.feedback.encode())
    sys.stdout.write(json.dumps({**told, "partition": sent.partition, "offset": sent.offset}) + "\n")
    return 0


def judgement(options: FeedbackOptions) -> tuple[FeedbackKind, float | str | None]:
    """Kind and value of what the flags say.

    Raises:
        ConfigError: they say nothing, or more than one thing.
    """
    said: dict[FeedbackKind, float | str | None] = {}
    if options.thumb is not None:
        said["thumb"] = 1.0 if options.thumb == "up" else -1.0
    if options.score is not None:
        said["score"] = options.score
    if options.prefer is not None:
        said["preference"] = options.prefer
    if options.correct is not None:
        said["correction"] = options.correct
    if options.retract:
        said["retract"] = None
    if len(said) != 1:
        raise ConfigError("give exactly one of --thumb, --score, --prefer, --correct and --retract")
    return said.popitem()


def _rollout(options: FeedbackOptions) -> RolloutId:
    try:
        return RolloutId.parse(options.rollout)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _find_run(options: FeedbackOptions, rollout: RolloutId) -> RunConfig:
    from pipelines.runs import find_config, with_bootstrap

    if options.run is not None and options.config is not None:
        raise ConfigError("name the run by one of --run and --config")
    if options.config is not None:
        config = with_bootstrap(load(options.config), options.bootstrap)
    else:
        config = find_config(options.run or rollout.run, options.bootstrap)[0]
    if config.name != rollout.run:
        raise ConfigError(f"rollout {options.rollout} is of the run {rollout.run!r}, given is {config.name!r}")
    return config


def _issue(options: FeedbackOptions, config: RunConfig, rollout: RolloutId, user: str) -> str | None:
    """A receipt from whoever may issue them; null if there is no key."""
    from schemas.receipts import Receipts

    key_file = str(options.key_file or config.feedback.key_file)
    if not key_file:
        return None
    return Receipts.load(key_file).issue(rollout, user, time.time() + config.feedback.receipt_s)
