"""Do users whose judgements are trained and users who only watch still agree?

A policy that learns to please a few raters, or a flaw of how they rate, is liked by them more and more, and by those
whose judgements it never saw less and less.
"""

from collections import deque
from statistics import fmean

import structlog

from transforms.feedback import metrics

_LOG = structlog.get_logger(__name__)


class Drift:
    """Compares the newest ratings of both kinds.

    Args:
        window: ratings of each kind; nothing is said before there are so many.
        alarm: difference of the means at which the alarm is raised.

    Attributes:
        is_raised: whether the alarm is on.
    """

    def __init__(self, window: int, alarm: float) -> None:
        self._alarm = alarm
        self._trained: deque[float] = deque(maxlen=window)
        self._held_out: deque[float] = deque(maxlen=window)
        self.is_raised = False

    def hear(self, rating: float, *, held_out: bool) -> None:
        """Takes one rating, and says when the alarm goes on or off."""
        (self._held_out if held_out else self._trained).append(rating)
        difference = self.difference()
        if difference is None:
            return
        metrics.DRIFT.set(difference)
        raised = abs(difference) >= self._alarm
        if raised != self.is_raised:
            self.is_raised = raised
            _LOG.warning("feedback_drift" if raised else "feedback_drift_over", difference=round(difference, 3))

    def difference(self) -> float | None:
        """Mean of the trained less that of the held-out ratings; null until both windows are full."""
        full = all(len(each) == each.maxlen for each in (self._trained, self._held_out))
        return fmean(self._trained) - fmean(self._held_out) if full else None
