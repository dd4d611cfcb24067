"""The set of offsets of one partition that are finished: a low-water mark and the set beyond it.

The rollout pipeline commits one per prompts partition with its outputs, in the metadata of the
consumer offset; the learner's checkpoint holds one per prompts partition for the groups it consumed.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from schemas.limits import MAX_OFFSET_METADATA_BYTES


@dataclass(slots=True)
class OffsetSet:
    """All offsets below ``low``, and those of ``beyond``.

    Example: offsets 0 to 9, 11 and 12 are ``OffsetSet(10, {11, 12})``.
    """

    low: int = 0
    beyond: set[int] = field(default_factory=set)

    def __contains__(self, offset: int) -> bool:
        return offset < self.low or offset in self.beyond

    def __len__(self) -> int:
        return self.low + len(self.beyond)

    def add(self, offset: int) -> None:
        """Adds one offset and moves the low-water mark over what is now complete."""
        if offset >= self.low:
            self.beyond.add(offset)
        while self.low in self.beyond:
            self.beyond.discard(self.low)
            self.low += 1

    def raise_low(self, low: int) -> None:
        """Counts everything below ``low`` as finished."""
        self.low = max(self.low, low)
        self.beyond = {offset for offset in self.beyond if offset >= self.low}
        self.add(-1)

    def copy(self) -> Self:
        """An independent set with the same members."""
        return type(self)(self.low, set(self.beyond))

    def canonical(self) -> tuple[int, tuple[int, ...]]:
        """A form that is equal, byte for byte when pickled, for equal sets."""
        return self.low, tuple(sorted(self.beyond))

    def encode(self, limit_bytes: int = MAX_OFFSET_METADATA_BYTES) -> str:
        """``beyond`` as the base64 of a compressed bitmap that starts at ``low``.

        When the text would exceed ``limit_bytes``, the highest offsets are left out until it fits:
        a reader then takes them for unfinished, which costs work and never loses any.
        """
        members = sorted(self.beyond)
        while True:
            text = _pack(self.low, members)
            if len(text) <= limit_bytes:
                return text
            members = members[: len(members) // 2]

    @classmethod
    def decode(cls, low: int, text: str) -> Self:
        """The inverse of :meth:`encode`.

        Raises:
            ValueError: the text is not such a bitmap.
        """
        try:
            bitmap = zlib.decompress(base64.b64decode(text, validate=True)) if text else b""
        except (ValueError, zlib.error) as error:
            raise ValueError(f"offset metadata {text[:40]!r} is not a compressed bitmap") from error
        return cls(low, {low + 8 * index + bit for index, byte in enumerate(bitmap) if byte for bit in _BITS[byte]})


_BITS: Final = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
"""The bits that are set in each byte: shifting one large number would take quadratic time."""


def _pack(low: int, members: Sequence[int]) -> str:
    if not members:
        return ""
    bitmap = bytearray((max(members) - low) // 8 + 1)
    for offset in members:
        bitmap[(offset - low) // 8] |= 1 << (offset - low) % 8
    return base64.b64encode(zlib.compress(bitmap, 9)).decode()
