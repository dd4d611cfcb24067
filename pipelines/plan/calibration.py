"""What a plan reckons with: how long answers are, how fast engines, learner, weights and log are, and who says so.

A calibration is a TOML file (:func:`load_calibration`, :func:`save_calibration`), made from a run's own log
(:mod:`pipelines.plan.measure`) or written by hand. It says nothing of how many engines there are: that is the plan.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from schemas.complaints import explain
from schemas.errors import ConfigError
from schemas.sections import Positive, Section

Length = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Some = Annotated[float, Field(gt=0)]
"""More than nothing."""
NotNegative = Annotated[float, Field(ge=0)]


class Workload(Section):
    """What is asked, answered and trained."""

    response_tokens: Annotated[tuple[Some, ...], Field(min_length=1)]
    """Lengths of answers at evenly spaced quantiles, from the shortest to the longest; one number for a constant."""
    prompt_tokens: Length = 0.0
    """Of a prompt, in the mean."""
    group_size: Positive = 8
    """Samples of a prompt."""
    groups_per_step: Positive = 8
    """Groups that contribute to one optimizer step."""
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """As ``learner.max_staleness``."""
    kept_share: Share = 1.0
    """Groups that the learner can use; others are dropped on arrival, for want of variance, and replaced."""

    @model_validator(mode="after")
    def _lengths_ascend(self) -> Self:
        if list(self.response_tokens) != sorted(self.response_tokens):
            raise ValueError("response_tokens are quantiles: give them from the shortest to the longest")
        return self


class EngineSpeed(Section):
    """One engine: a decoding step, in which each sequence gains a token, takes ``step_s + sequence_s × sequences``."""

    slots: Positive
    """Sequences that it computes at once."""
    step_s: Some
    """Of a decoding step, what does not depend on how many sequences there are, in seconds."""
    sequence_s: NotNegative = 0.0
    """What each sequence adds to a decoding step, in seconds."""
    prefill_tokens_per_s: Some | None = None
    """Of prompts, and of the sequences under way after new weights; nothing decodes meanwhile. Null: takes no time."""
    gpus: Positive = 1
    """GPUs of one engine."""

    def decoding_step_s(self, sequences: int) -> float:
        """Seconds in which each of so many sequences gains a token."""
        return self.step_s + self.sequence_s * sequences


class LearnerSpeed(Section):
    """The learner: a step takes ``fixed_s`` and ``token_s`` for every token of the fullest rank."""

    token_s: NotNegative
    """Seconds that one rank computes for a token of prompts and answers."""
    fixed_s: NotNegative = 0.0
    """Seconds of a step that more ranks do not shorten: the exchange of gradients, the optimizer."""
    publish_s: NotNegative = 0.0
    """From the end of a step until its weights are announced and prompts admitted, beside the next gradient."""
    min_ranks: Positive = 1
    """Ranks below which the model does not fit."""


class WeightsSpeed(Section):
    """How a version comes to the engines."""

    fetch_s: NotNegative = 0.0
    """From the announcement until an engine stops for it."""
    pause_s: NotNegative = 0.0
    """In which the engine generates nothing; what it computes again after that is ``engine.prefill_tokens_per_s``."""


class LogSpeed(Section):
    """The rollout pipeline and Kafka."""

    latency_s: NotNegative = 0.05
    """From the last token of a group until the learner has it, beside waiting for others."""
    share_token_s: NotNegative = 1.83e-6
    """Seconds that one share of the rollout pipeline needs for a token of answers."""
    partition_bytes_per_s: Some = 25e6
    """What one partition of the trajectories takes and gives."""
    token_bytes: NotNegative = 8.0
    """Of a token of answers in the log."""
    max_in_flight: Positive | None = None
    """Groups in flight, of all shares together; null for as many as are admitted."""


class Calibration(Section):
    """Everything that a plan reckons with. Example: ``docs/plans/7b.toml``."""

    name: str
    """Of the run or the model."""
    workload: Workload
    engine: EngineSpeed
    learner: LearnerSpeed
    weights: WeightsSpeed = WeightsSpeed()
    log: LogSpeed = LogSpeed()
    gpu_hour_price: NotNegative = 0.0
    """Of one GPU for an hour, in whatever currency; 0 for no costs."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where values come from, by key, such as ``engine.step_s``; what is not named is a default or was just given."""

    @model_validator(mode="after")
    def _groups_fit_engines(self) -> Self:
        if self.workload.group_size > self.engine.slots:
            raise ValueError(
                f"workload.group_size = {self.workload.group_size} exceeds engine.slots = {self.engine.slots}: "
                "an engine computes a group at once; raise the slots or lower the size"
            )
        return self


def changed(calibration: Calibration, values: Mapping[str, Any]) -> Calibration:
    """The calibration with other values.

    Args:
        calibration: stays as it is.
        values: by dotted key, such as ``workload.max_staleness``.

    Raises:
        ConfigError: a value is wrong.
    """
    tree = calibration.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
        tree["sources"][key] = "as given"
    return _validate(tree, calibration.name)


def load_calibration(path: Path) -> Calibration:
    """Reads a calibration.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a key or value is wrong.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"calibration {path}: {error}; asyncflow plan --run RUN --save FILE makes one from a run"
        ) from error
    return _validate(tree, str(path))


def _validate(tree: dict[str, Any], source: str) -> Calibration:
    try:
        return Calibration.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"calibration {source}: {explain(error, Calibration)}") from error


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration as TOML.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = tomli_w.dumps(calibration.model_dump(mode="json", exclude_none=True))
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"--save {path}: {error.strerror}; give a file in a directory that can be written") from error
