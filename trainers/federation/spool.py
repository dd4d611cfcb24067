"""What verified updates say, on the coordinator's own disk until they are merged: one file, a slot for each.

Memory stays the same whatever the number of sites, and nobody can change an update after it was looked at. Slots are
used again; the file is gone with its process, however that ends.

Shape suffixes: P all numbers of the model, N some of them.
"""
# ruff: noqa: N803 - the suffixes are the shapes

import os
import tempfile
from typing import Final

import numpy as np

from trainers.disk import disk_errors
from trainers.federation.layout import Row

_NUMBER_BYTES: Final = 4


class Spool:
    """Rows of one length, by their slot."""

    def __init__(self, size: int, directory: str = "") -> None:
        """Opens it.

        Args:
            size: numbers of a row.
            directory: where; empty for the system's place for temporary files.

        Raises:
            DiskError: no file can be made there.
        """
        self._row_bytes = size * _NUMBER_BYTES
        self._where = directory or tempfile.gettempdir()
        with disk_errors("spool of updates", self._where):
            os.makedirs(self._where, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._where)  # noqa: SIM115 - closed with the process
        self._free: list[int] = []
        self._slots = 0

    def put(self, row_P: Row) -> int:
        """Keeps a row and returns its slot.

        Raises:
            DiskError: the disk is full.
        """
        if not self._free:
            self._free.append(self._slots)
            self._slots += 1
        slot = self._free.pop()
        view, place = memoryview(np.ascontiguousarray(row_P)).cast("B"), slot * self._row_bytes
        with disk_errors("spool of updates", self._where):
            while len(view):
                written = os.pwrite(self._file.fileno(), view, place)
                view, place = view[written:], place + written
        return slot

    def get(self, slot: int, place: slice, into_N: Row) -> None:
        """Reads some numbers of a row."""
        view, begin = memoryview(into_N).cast("B"), slot * self._row_bytes + place.start * _NUMBER_BYTES
        while len(view):
            count = os.preadv(self._file.fileno(), [view], begin)
            assert count, "a slot was put before it is read"
            view, begin = view[count:], begin + count

    def free(self, slot: int) -> None:
        """Lets the slot be used again."""
        self._free.append(slot)

    def close(self) -> None:
        """Removes the file."""
        self._file.close()
