"""Reading no faster than the state takes: a runner that has more puts all of it into one bundle.

Prism gives a stage whatever waits for it as one bundle, and nothing of a bundle is seen or written before its end.
After hours without the pipeline that would be everything at once. So the reader keeps a bounded number of items on the
way. Where reader and state are in different processes the runner's own flow control has to do, and this does nothing.
"""

import threading
import time
from typing import Final

_MOST_ITEMS: Final = 1000
"""On the way from the reader to the state."""
_ELSEWHERE_S: Final = 10.0
"""After so long without any item arriving in this process the state is taken to be in another one."""


class Pace:
    """Counts items between the reader and the state. One in a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_the_way = 0
        self._moved_s = time.monotonic()

    def give(self, items: int) -> None:
        """The reader has given so many."""
        with self._lock:
            if self._on_the_way <= 0:
                self._moved_s = time.monotonic()
            self._on_the_way += items

    def take(self, items: int) -> None:
        """So many have arrived."""
        with self._lock:
            self._on_the_way -= items
            self._moved_s = time.monotonic()

    def has_room(self) -> bool:
        """Whether the reader may go on."""
        with self._lock:
            if time.monotonic() - self._moved_s > _ELSEWHERE_S:
                self._on_the_way = 0
            return self._on_the_way < _MOST_ITEMS


PACE: Final = Pace()
