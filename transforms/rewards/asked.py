"""Rewards that ask somebody else, over HTTP: coroutines instead of functions.

    @asked("judge")
    async def judge(sample: Sample, arguments: JudgeArguments, case: Case) -> Reward: ...

They are registered like any other reward, but run in an event loop of the pipeline
(:mod:`transforms.rewards.asking`) instead of a reward process: they compute nothing and wait for long, many
at a time, and share connections and circuit breakers. Whom they ask stands in the configuration; their
arguments only name it. A sum (``weighted``) in which one of them stands is scored piece by piece.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from schemas.errors import RecordError
from schemas.suggestions import did_you_mean
from transforms.rewards import registry, weighted
from transforms.rewards.registry import Arguments, Reward, reward
from transforms.rewards.scoring import SampleScore, to_score

if TYPE_CHECKING:
    from schemas.config import RewardsConfig
    from schemas.prompts import Prompt, RewardSpec
    from schemas.services import JudgeConfig
    from schemas.trajectories import Sample
    from transforms.rewards.service import Service

ServiceKind = Literal["judges", "reward_models"]


@dataclass(frozen=True)
class Case:
    """What a reward may know beside the sample, and whom it may ask."""

    prompt: Prompt
    judges: Mapping[str, tuple[Service, JudgeConfig]]
    """By the configuration's names."""
    reward_models: Mapping[str, Service]
    """By the configuration's names."""
    vocabulary: str | None
    """Hash of the tokens that the sample's ids are of; null if it is not known."""


class AskingArguments(Arguments):
    """Arguments of a reward that asks."""

    def services(self) -> Iterable[tuple[ServiceKind, str]]:
        """Section and name of each service that they name."""
        raise NotImplementedError


ArgumentsT = TypeVar("ArgumentsT", bound=AskingArguments)
AskingReward = Callable[["Sample", Any, Case], Coroutine[Any, Any, Reward]]


def asked(name: str) -> Callable[[AskingReward], AskingReward]:
    """Registers a coroutine under ``name``; see :func:`transforms.rewards.registry.reward`."""

    def register(function: AskingReward) -> AskingReward:
        reward(name)(cast("Any", function))
        return function

    return register


def is_asked(name: str) -> bool:
    """Whether the reward of that name asks somebody else.

    Raises:
        RecordError: there is no such reward.
    """
    return inspect.iscoroutinefunction(registry.find(name).thing)


def pieces_of(spec: RewardSpec) -> Sequence[RewardSpec]:
    """What is scored by itself: the parts of a sum in which somebody is asked, or else the reward as a whole.

    Raises:
        RecordError: there is no such reward, or it does not understand its arguments.
    """
    if spec.name != weighted.NAME:
        return (spec,)
    parts = cast("weighted.Parts", registry.parse_arguments(registry.find(spec.name), spec)).of
    return parts if any(is_asked(part.name) for part in parts) else (spec,)


def add_up(pieces: Sequence[RewardSpec], scores: Sequence[Sequence[SampleScore]]) -> list[SampleScore]:
    """The scores of a group, of those of its pieces; a sample has none if a piece has none.

    Args:
        pieces: as :func:`pieces_of` gives them.
        scores: of each piece, for all samples.
    """
    if not isinstance(pieces[0], weighted.Part):
        return list(scores[0])
    return [_sum(cast("Sequence[weighted.Part]", pieces), of_sample) for of_sample in zip(*scores, strict=True)]


def _sum(parts: Sequence[weighted.Part], scores: Sequence[SampleScore]) -> SampleScore:
    rewards = [Reward(score.value, score.parts) for score in scores if score.value is not None]
    if len(rewards) < len(parts):
        return SampleScore(None, {}, next(score.error for score in scores if score.value is None))
    return to_score(weighted.add_up(parts, rewards))


def check(config: RewardsConfig, spec: RewardSpec) -> None:
    """Whether the services that a prompt names are configured. Other rewards pass.

    Raises:
        RecordError: ``bad_reward_arguments``.
    """
    for piece in pieces_of(spec):
        if is_asked(piece.name):
            _check_services(config, piece)


def _check_services(config: RewardsConfig, spec: RewardSpec) -> None:
    arguments = cast("AskingArguments", registry.parse_arguments(registry.find(spec.name), spec))
    for kind, name in arguments.services():
        known = getattr(config, kind)
        if name not in known:
            there = did_you_mean(name, sorted(known)) if known else "there is none"
            raise RecordError(
                "bad_reward_arguments", f"reward {spec.name!r}: rewards.{kind} has no {name[:80]!r}; {there}"
            )
