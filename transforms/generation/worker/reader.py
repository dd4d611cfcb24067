"""Reads and verifies versions in a process of its own, beside the server.

    follower ──announcement──► ReaderProcess ──► process: WeightStore.fetch ─► Expectation.check
             ◄──────────────── Verified, or the refusal ──────────────────────────┘

The server streams tokens from one thread that hardly ever lets go of Python's lock. A thread beside it that reads,
hashes and checks the files of 135 M weights takes 0.7 s at 5,000 tokens/s, here it takes a fifth of that.
"""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Final

from schemas.errors import RecordError, StateError
from transforms.generation.worker.lifeline import hold
from transforms.generation.worker.store import WeightStore

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from schemas.weights import WeightVersion
    from transforms.generation.worker.verify import Expectation, Verified

_CLOSE_LAST: Final = 0
"""Priority among what a process does at its end."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What is done with an announcement before the engine hears of it."""

    store: WeightStore
    expectation: Expectation

    def read(self, announced: WeightVersion) -> Verified:
        """Makes a version local and verifies it.

        Raises:
            RecordError: with the reason; nothing of it may be loaded.
        """
        directory, manifest = self.store.fetch(announced)
        try:
            return self.expectation.check(announced, directory, manifest)
        except RecordError as refusal:
            if self.store.has(announced.version):
                raise
            raise RecordError("vanished", f"removed while it was read ({refusal.detail})") from refusal


class ReaderProcess:
    """A :class:`Reader` in another process, which begins to start at once and ends with this one."""

    def __init__(self, root: str, expectation: Expectation) -> None:
        """Takes ``weights.root``; after :func:`~transforms.generation.worker.arguments.prepare_environment`."""
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_start, initargs=(root, expectation)
        )
        self._pool.submit(_started)  # the pool starts its process when it is first asked for something

    async def read(self, announced: WeightVersion) -> Verified:
        """See :meth:`Reader.read`.

        Raises:
            StateError: the process died.
        """
        try:
            return await asyncio.wrap_future(self._pool.submit(_read, announced))
        except BrokenProcessPool as error:
            raise StateError(f"the process that verifies weights died while it read {announced.version}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


_reader: Reader
"""Of the process."""


def _start(root: str, expectation: Expectation) -> None:
    import torch

    global _reader  # noqa: PLW0603 - a pool's process has no other place
    hold()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server ends this process when nobody reads any more
    torch.set_num_threads(1)  # files are checked in parallel, one thread for each
    store = WeightStore(root)
    Finalize(None, store.close, exitpriority=_CLOSE_LAST)
    _reader = Reader(store, expectation)


def _started() -> None:
    """Nothing to do: see :class:`ReaderProcess`."""


def _read(announced: WeightVersion) -> Verified:
    return _reader.read(announced)
