"""How fast each worker answers, so that a slow one is given less.

    request begins ──► in flight: its time counts ──► answered: one more

The mean time of an answer is the time spent on requests divided by the answers (Little's law). Requests
that still run count too, so a worker that answers nothing any more looks slower with every moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WINDOW_ANSWERS: Final = 128
"""What is remembered is halved at so many answers, so the figures are of the last 64 to 128."""
_WINDOW_S: Final = 10.0
"""And at the latest after this time, so that a worker's bad minute is forgotten."""
_PRIOR_ANSWERS: Final = 16
"""A worker is taken for an average one until it has given clearly more answers than this."""
_SLOWEST: Final = 0.1
"""A worker counts for at least this part of the fastest, or nobody would learn that it has recovered."""


@dataclass(slots=True)
class Pace:
    """What one worker has done lately."""

    in_flight: int = 0
    """Requests."""
    spent_s: float = 0.0
    """Time of all its requests, those in flight included, added up."""
    answers: float = 0.0
    _now_s: float = 0.0
    _window_began_s: float = 0.0

    def begin(self, now_s: float) -> None:
        """A request is sent."""
        self.advance(now_s)
        self.in_flight += 1

    def end(self, now_s: float, *, answered: bool) -> None:
        """A request is over. One that failed has taken time and given nothing: failing fast is not being fast."""
        self.advance(now_s)
        self.in_flight -= 1
        self.answers += answered

    def advance(self, now_s: float) -> None:
        """Time passes."""
        self.spent_s += self.in_flight * (now_s - self._now_s)
        self._now_s = now_s
        if self.answers >= _WINDOW_ANSWERS or now_s - self._window_began_s >= _WINDOW_S:
            self.spent_s, self.answers, self._window_began_s = self.spent_s / 2, self.answers / 2, now_s

    def forget(self) -> None:
        """The past says nothing any more: the worker was down."""
        self.spent_s = self.answers = 0.0


def speeds(paces: Sequence[Pace]) -> list[float]:
    """How fast each worker is; 1 is the mean, and what a worker counts for of which little is known."""
    answers = sum(pace.answers for pace in paces)
    mean_s = sum(pace.spent_s for pace in paces) / answers if answers else 0.0
    if mean_s <= 0:
        return [1.0] * len(paces)
    prior_s = _PRIOR_ANSWERS * mean_s
    found = [mean_s * (pace.answers + _PRIOR_ANSWERS) / (pace.spent_s + prior_s) for pace in paces]
    slowest = _SLOWEST * max(found)
    return [max(speed, slowest) for speed in found]
