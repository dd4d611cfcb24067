"""Which prompts of a task, in which order, and who rewards their answers.

prompts of a split ──seed──► shuffled ──limit──► the first of them ──share──► rewarded by a function, or by people too
"""

import random
from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import ENVIRONMENT_REWARD, FEEDBACK_REWARD, FeedbackArguments, Prompt, RewardSpec


def draw(task: Task, data: Path, split: Split, *, limit: int | None = None, seed: int = 0) -> list[Prompt]:
    """Prompts in an order that depends on the seed alone; with a limit the first of that order.

    Raises:
        ConfigError: a file is missing or wrong, or the limit is not above 0.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: expected 1 or more, or nothing for all")
    return task.shuffled(data, split, seed)[:limit]


def repeated(prompts: Sequence[Prompt], epochs: int, seed: int) -> list[Prompt]:
    """All prompts so many times, the first time in the order given and then in others.

    Raises:
        ConfigError: the number is not above 0.
    """
    if epochs < 1:
        raise ConfigError(f"--epochs {epochs}: expected 1 or more")
    rounds = [random.Random(f"{seed}/{epoch}").sample(prompts, len(prompts)) for epoch in range(1, epochs)]
    return [*prompts, *(prompt for each in rounds for prompt in each)]


def judged_by_people(prompts: Sequence[Prompt], share: float) -> list[Prompt]:
    """The same prompts, whose answers wait for feedback.

    Args:
        prompts: with a function's reward.
        share: how much of the reward the function remains, from 0 to 1; with 0 people's word alone counts, and the
            function is not called.

    Raises:
        ConfigError: the share is something else, or is above 0 where an environment gives the reward.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"--feedback-share {share}: expected 0 (people alone) to 1 (the function alone)")
    if share and any(prompt.reward.name == ENVIRONMENT_REWARD for prompt in prompts):
        raise ConfigError(
            f"--feedback-share {share}: an environment rewards these conversations, and only a function's reward can "
            "be blended; expected 0 (people alone)"
        )
    return [prompt.model_copy(update={"reward": _blend(prompt.reward, share)}) for prompt in prompts]


def _blend(function: RewardSpec, share: float) -> RewardSpec:
    if not share:
        return RewardSpec(name=FEEDBACK_REWARD)
    given = FeedbackArguments(verifiable=function, share=share)
    return RewardSpec(name=FEEDBACK_REWARD, args=given.model_dump(mode="json"))
