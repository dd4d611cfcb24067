"""The reward call: what runs inside a reward process. Imports no Beam, so that processes start fast."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from schemas.errors import RewardFault
from schemas.prompts import RewardSpec
from schemas.trajectories import Sample
from transforms.rewards import registry
from transforms.rewards.registry import Reward

_LARGEST: Final = 3.4028234663852886e38
"""Of float32, in which rewards travel: beyond it they would be infinite."""
_ERROR_CHARACTERS: Final = 300
_MOST_PARTS: Final = 100
"""More parts than anyone looks at would be carried with every sample."""


class SampleScore(NamedTuple):
    """The reward of one sample, or why there is none."""

    value: float | None
    parts: dict[str, float]
    error: str | None
    """``{reason}: {detail}`` with reason ``reward_error``, ``reward_timeout`` or that of a fault; null if there is a
    value."""


def failed(reason: str, detail: str) -> SampleScore:
    """A null reward."""
    return SampleScore(None, {}, f"{reason}: {detail}"[:_ERROR_CHARACTERS])


def score_samples(spec: RewardSpec, samples: Sequence[Sample]) -> list[SampleScore]:
    """Scores samples one after the other, in this process. Needs the rewards to be loaded."""
    entry = registry.find(spec.name)
    arguments = registry.parse_arguments(entry, spec)
    return [_score_one(entry.thing, sample, arguments) for sample in samples]


def _score_one(function: registry.RewardFunction, sample: Sample, arguments: Any) -> SampleScore:
    try:
        return to_score(function(sample, arguments))
    except RewardFault as fault:
        return failed(fault.reason, fault.detail)
    except BaseException as error:  # noqa: BLE001 - the reward call is a seam: SystemExit too may come out of it
        return failed("reward_error", describe(error))


def describe(error: BaseException) -> str:
    """What other people's code raised, in words."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - of the same seam: the text of the reward's own exception is its code too
        return type(error).__name__


def to_score(reward: object, reason: str = "reward_error") -> SampleScore:
    """What a reward gave, checked; what is wrong with it stands under ``reason``."""
    if not isinstance(reward, Reward):
        return failed(reason, f"returned {type(reward).__name__}, expected a Reward")
    if len(reward.parts) > _MOST_PARTS:
        return failed(reason, f"{len(reward.parts)} parts, at most {_MOST_PARTS} are kept")
    value, parts = float(reward.value), {str(name): float(part) for name, part in reward.parts.items()}
    numbers = [("value", value), *parts.items()]  # a part may be called like that, too
    wrong = [f"{name} = {number}" for name, number in numbers if not abs(number) <= _LARGEST]
    if wrong:
        return failed(reason, f"not finite in 32 bits: {', '.join(wrong)}")
    return SampleScore(value, parts, None)
