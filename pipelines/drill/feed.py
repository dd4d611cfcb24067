"""A producer that never lets the run starve: mostly good prompts, some that must become dead letters."""

import json
import random
import threading
from typing import Final

import structlog

from pipelines.drill.rewards import HOSTILE, SHARE
from pipelines.drill.watch import Watch
from schemas.config import RunConfig
from schemas.errors import BrokerError

_AHEAD: Final = 60
"""Prompts that wait for their admission."""
_BATCH: Final = 30
_PAUSE_S: Final = 0.5
_BAD_SHARE: Final = 0.02
_LOG = structlog.get_logger(__name__)


class Feed(threading.Thread):
    """Submits prompts as the learner admits them, through every fault.

    Args:
        config: of the run.
        watch: knows how many were admitted.
        seed: of the prompts.
    """

    def __init__(self, config: RunConfig, watch: Watch, seed: int) -> None:
        super().__init__(name="feed", daemon=True)
        self._config, self._watch = config, watch
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self.submitted = 0

    def run(self) -> None:
        """Runs until :meth:`stop`."""
        from pipelines.submit import submit

        while not self._ended.wait(_PAUSE_S):
            if self.submitted - self._watch.admitted > _AHEAD:
                continue
            try:
                self.submitted += submit(self._config, [self._prompt() for _ in range(_BATCH)])
            except BrokerError as error:
                _LOG.warning("feed waits", reason=str(error)[:200])

    def _prompt(self) -> bytes:
        if self._random.random() < _BAD_SHARE:
            return self._random.choice([b"\xff\xfe", b"{", b'{"messages": []}', b'{"token_ids": [99999999]}'])
        name = self._random.choice(HOSTILE) if self._random.random() < _BAD_SHARE else SHARE
        chat = [{"role": "user", "content": f"What is {self._random.randrange(10)}+{self._random.randrange(10)}?"}]
        letter = self._random.choice("0123456789")
        reward = {"name": name, "args": {"letter": letter}}
        return json.dumps({"prompt_id": f"{name}/{letter}", "messages": chat, "reward": reward}).encode()

    def stop(self) -> None:
        """Ends it."""
        self._ended.set()
