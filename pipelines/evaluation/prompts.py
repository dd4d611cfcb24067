"""The prompts of an evaluation: a file in the form of the prompts topic, all of which has to be usable.

A held-out set from which lines dropped out would give figures of something else, so nothing is passed over.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.submit import read_lines
from schemas.config import RunConfig
from schemas.errors import ConfigError, RecordError
from schemas.prompts import FEEDBACK_REWARD, Prompt
from transforms.environments import registry as environments
from transforms.generation.request import Encoder
from transforms.rewards import asked, registry
from transforms.rewards.code import runs_code
from transforms.rewards.sandbox import launch


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Prompts that are never trained, one or more."""

    prompts: tuple[Prompt, ...]

    @property
    def sha256(self) -> str:
        """Of all records: figures on other prompts are not comparable."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(prompt.encode() + b"\n")
        return digest.hexdigest()


def read_held_out(file: Path) -> HeldOut:
    """The prompts of a JSON-lines file.

    Raises:
        ConfigError: the file cannot be read or is empty, or a line is no prompt: which, and what is wrong with it.
    """
    prompts = []
    for number, line in enumerate(read_lines(file), start=1):
        try:
            prompts.append(Prompt.decode(line))
        except RecordError as error:
            raise ConfigError(f"--prompts {file}, prompt {number}: {error}; correct it or leave it out") from error
    if not prompts:
        raise ConfigError(f"--prompts {file}: no prompts, expected one JSON object a line")
    return HeldOut(tuple(prompts))


def load_registries(config: RunConfig) -> None:
    """Imports the rewards and environments that prompts may name.

    Raises:
        ConfigError: a module cannot be imported.
    """
    registry.load(config.rewards.modules)
    environments.load(config.rollout.environments)


def check_usable(prompts: Sequence[Prompt], tokenizer: Encoder) -> None:
    """Whether every prompt can be asked and its answers be scored here and now.

    Raises:
        ConfigError: naming the first that cannot.
    """

    def check(prompt: Prompt) -> None:
        _check_reward(prompt)
        tokenizer.encode(prompt)

    _check_each(prompts, check)


def check_scorable(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """As :func:`check_usable` and those below, for as much as can be told without a model.

    Raises:
        ConfigError: naming the first that cannot be scored, or code cannot be run.
    """
    load_registries(config)
    _check_each(prompts, _check_reward)
    check_sandbox(config, prompts)
    check_services(config, prompts)


def check_sandbox(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Whether code can be run where a prompt wants it to.

    Raises:
        ConfigError: it cannot.
    """
    if any(prompt.function and runs_code(prompt.function) for prompt in prompts):
        launch.check(config.rewards.sandbox)


def check_services(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Whether the judges and reward models that prompts name are configured.

    Raises:
        ConfigError: naming the first that is not.
    """

    def check(prompt: Prompt) -> None:
        if prompt.function:
            asked.check(config.rewards, prompt.function)

    _check_each(prompts, check)


def _check_each(prompts: Sequence[Prompt], check: Callable[[Prompt], None]) -> None:
    for number, prompt in enumerate(prompts, start=1):
        try:
            check(prompt)
        except RecordError as error:
            name = f" ({prompt.prompt_id})" if prompt.prompt_id else ""
            raise ConfigError(f"held-out prompt {number}{name}: {error}; correct it or leave it out") from error


def _check_reward(prompt: Prompt) -> None:
    if prompt.reward.name == FEEDBACK_REWARD:
        raise RecordError("unknown_reward", "people reward its answers, an evaluation cannot; give a registered reward")
    registry.check(prompt.reward)
    if prompt.environment:
        environments.check(prompt.environment)
