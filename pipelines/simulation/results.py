"""What came of a simulation: the share of liked answers over time, and how long the model took to adapt.

answers, each liked or not ──► windows of so many answers ──► gained before the change, recovered after it
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

RECOVERED: Final = 0.9
"""Of the share that was liked before the change."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer."""

    number: int
    """All users' answers are counted together."""
    at_s: float
    """Since the start of the simulation."""
    liked: bool
    """What its user really thinks of it."""
    judgements: int
    """Judgements that the gateway had taken by then, all users' together."""
    version: int
    """The newest weight version among its tokens."""
    parts: Mapping[str, bool] = field(default_factory=dict)
    """What its user looked at; the same names for all answers."""


@dataclass(frozen=True, slots=True)
class Window:
    """So many answers, one after the other."""

    first: int
    at_s: float
    """Of its last answer."""
    liked: float
    """Share."""
    judgements: int
    """Until its last answer."""
    version: int
    """Of its last answer."""
    parts: dict[str, float]
    """Share of the answers that are right in each of what users look at."""


def windows(answers: Sequence[Answered], size: int) -> list[Window]:
    """Whole windows, in the order of the answers."""
    return list(map(_sum_up, whole(answers, size)))


def whole(answers: Sequence[_T], size: int) -> list[Sequence[_T]]:
    """So many answers each, in their order; without those at the end that are fewer."""
    return [answers[start : start + size] for start in range(0, len(answers) - size + 1, size)]


def _sum_up(answers: Sequence[Answered]) -> Window:
    first, last = answers[0], answers[-1]
    parts = {name: fmean(each.parts[name] for each in answers) for name in first.parts}
    return Window(first.number, last.at_s, fmean(each.liked for each in answers), last.judgements, last.version, parts)


def summarise(answers: Sequence[Answered], change_at: int, size: int) -> dict[str, Any]:
    """The figures of a simulation, as JSON.

    Args:
        answers: all, in their order.
        change_at: number of the first answer under the second preference.
        size: answers of a window.
    """
    before = windows([each for each in answers if each.number < change_at], size)
    after = windows([each for each in answers if each.number >= change_at], size)
    return {
        "answers": len(answers),
        "window": size,
        "before_change": [asdict(window) for window in before],
        "after_change": [asdict(window) for window in after],
        "liked_at_first": before[0].liked if before else None,
        "liked_before_change": before[-1].liked if before else None,
        "gained": before[-1].liked - before[0].liked if before else None,
        "recovery": recovery(before, after),
    }


def recovery(before: Sequence[Window], after: Sequence[Window]) -> dict[str, float] | None:
    """How long the model took after the change to be liked nearly as much as before; null if it did not."""
    if not before:
        return None
    wanted, changed = RECOVERED * before[-1].liked, before[-1]
    for window in after:
        if window.liked >= wanted:
            return {
                "liked": window.liked,
                "seconds": window.at_s - changed.at_s,
                "judgements": window.judgements - changed.judgements,
                "answers": window.first - after[0].first,
            }
    return None
