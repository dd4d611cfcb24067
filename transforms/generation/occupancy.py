"""What a pool's slots do: how much of the time they are filled, and why they are not."""

import time
from typing import Literal, get_args

from transforms import metrics

State = Literal["filled", "admission", "no_prompts", "no_worker", "back_pressure"]
"""Of a slot: a prompt is being answered, or the next prompt is not admitted yet, or there is none, or no
worker is up, or what is finished has to be committed first."""


class Occupancy:
    """Adds up slot-seconds. The caller holds a lock.

    Example: with 4 slots of which 3 are filled, 2 s add 1.5 s to ``filled`` and 0.5 s to the reason.
    """

    def __init__(self, slots: int, share: int) -> None:
        self._slots = slots
        self._seconds = {state: metrics.SLOT_SECONDS.labels(str(share), state) for state in get_args(State)}
        self._filled = 0
        self._reason: State = "no_prompts"
        self._since_s = time.monotonic()

    def fill(self, filled: int) -> None:
        """From now on so many are filled."""
        self.advance()
        self._filled = min(filled, self._slots)

    def explain(self, reason: State) -> None:
        """From now on this is why the others are empty."""
        if reason != self._reason:
            self.advance()
            self._reason = reason

    def advance(self) -> None:
        """Counts what has passed; called often, so that what is served is not as late as the next answer."""
        now_s = time.monotonic()
        passed_s, self._since_s = now_s - self._since_s, now_s
        filled_s = passed_s * self._filled / self._slots
        self._seconds["filled"].inc(filled_s)
        self._seconds[self._reason].inc(passed_s - filled_s)
