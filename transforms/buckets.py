"""Token buckets: who may do how much, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

_MOST: Final = 100_000
"""Buckets that are remembered; some 20 MB. Those used longest ago are forgotten first, which fills them."""


class Buckets:
    """One bucket a key: it holds ``burst`` tokens, loses one for everything that is done, and fills up again.

    Args:
        rate_per_s: tokens a second.
        burst: most tokens of a bucket.
        most: buckets that are remembered.
        clock: in seconds, never going back.
    """

    def __init__(
        self, rate_per_s: float, burst: int, most: int = _MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate_per_s, self._burst, self._most, self._clock = rate_per_s, burst, most, clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now_s: float | None = None) -> float:
        """Takes a token.

        Args:
            key: whose.
            now_s: the moment by another clock, which may be that of a topic; null for this one's.

        Returns:
            0 if there was one, else the seconds until there is.
        """
        now_s = self._clock() if now_s is None else now_s
        tokens, since_s = self._buckets.pop(key, (float(self._burst), now_s))
        tokens = min(self._burst, tokens + max(0.0, now_s - since_s) * self._rate_per_s)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - allowed, max(now_s, since_s))
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate_per_s
