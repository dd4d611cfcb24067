"""The changed numbers of a file, compressed; rebuilding gives the exact bytes of the new file.

    base file, new file ──encode──► gaps between changed numbers, differences ──zstd──► delta
    base file, delta    ──apply──►  new file

One step of a small learning rate changes few of the 16-bit numbers, and most of those by one unit of
their last place: as integers their difference is 1 or -1. A delta is ``AFD1``, the bytes of a number
(2 or 4), the bytes of the file and the count of changed numbers (little-endian, 1 + 8 + 8 bytes), then
the zstd frame of all gaps (32 bits) and differences, both as planes of bytes: the planes of high bytes
are nearly all zero.
"""

import struct
from typing import Any, Final

from schemas.errors import RecordError

_MAGIC: Final = b"AFD1"
_HEAD: Final = struct.Struct("<4sBQQ")
_GAP_BYTES: Final = 4
_MAX_FILE_BYTES: Final = 1 << 33
"""Positions have 32 bits."""
_LEVEL: Final = 1


def encode(base: Any, new: Any, number_bytes: int) -> bytes:
    """What has to be known besides the base to have the new file.

    Args:
        base: bytes of the old file, of the length of the new one; any buffer.
        new: bytes of the new file, a multiple of ``number_bytes``.
        number_bytes: 2 or 4: the size of most numbers in the file.

    Raises:
        ValueError: the lengths differ, exceed 8 GiB or are no multiple of ``number_bytes``.
    """
    import numpy as np
    import pyarrow as pa

    kind = f"<u{number_bytes}"
    old, fresh = np.frombuffer(base, kind), np.frombuffer(new, kind)
    if old.nbytes != fresh.nbytes or fresh.nbytes > _MAX_FILE_BYTES:
        raise ValueError(f"a delta is between files of one length below 8 GiB, given {old.nbytes}, {fresh.nbytes}")
    positions = np.flatnonzero(old != fresh)
    gaps = np.diff(positions, prepend=0).astype("<u4")
    body = _planes(gaps) + _planes(fresh[positions] - old[positions])
    packed = pa.Codec("zstd", compression_level=_LEVEL).compress(body, asbytes=True) if body else b""
    return _HEAD.pack(_MAGIC, number_bytes, fresh.nbytes, len(positions)) + packed


def apply(base: Any, delta: bytes) -> bytearray:
    """The new file.

    Args:
        base: bytes of the old file; any buffer.
        delta: what :func:`encode` returned.

    Raises:
        RecordError: ``bad_files``: the delta is not one, or is none of a file of this length.
    """
    import numpy as np

    number_bytes, count = _read_head(base, delta)
    rebuilt = bytearray(base)
    body = _decompress(delta[_HEAD.size :], count * (_GAP_BYTES + number_bytes))
    gaps = _numbers(body[: count * _GAP_BYTES], _GAP_BYTES)
    differences = _numbers(body[count * _GAP_BYTES :], number_bytes)
    numbers = np.frombuffer(rebuilt, f"<u{number_bytes}")
    positions = np.cumsum(gaps, dtype=np.int64)
    if count and positions[-1] >= len(numbers):
        raise RecordError("bad_files", f"a delta changes number {positions[-1]} of {len(numbers)}")
    numbers[positions] += differences
    return rebuilt


def _read_head(base: Any, delta: bytes) -> tuple[int, int]:
    """Bytes of a number, and how many numbers change; nothing else is trusted before it fits the base."""
    if len(delta) < _HEAD.size:
        raise RecordError("bad_files", f"a delta of {len(delta)} bytes")
    magic, number_bytes, size, count = _HEAD.unpack_from(delta)
    length = memoryview(base).nbytes
    fits = size == length <= _MAX_FILE_BYTES and number_bytes in (2, 4) and length % number_bytes == 0
    if magic != _MAGIC or not fits or count * number_bytes > size:
        raise RecordError("bad_files", f"not a delta of a file of {length} bytes")
    return number_bytes, count


def _decompress(packed: bytes, size: int) -> bytes:
    import pyarrow as pa

    if not size:
        return b""
    try:
        body: bytes = pa.Codec("zstd").decompress(packed, decompressed_size=size, asbytes=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecordError("bad_files", f"a delta that cannot be decompressed: {error}"[:300]) from error
    if len(body) != size:
        raise RecordError("bad_files", f"a delta of {len(body)} bytes, expected {size}")
    return body


def _planes(numbers: Any) -> bytes:
    """The lowest bytes of all numbers, then the next ones."""
    import numpy as np

    split = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, numbers.dtype.itemsize)
    return bytes(np.ascontiguousarray(split.T))


def _numbers(planes: bytes, number_bytes: int) -> Any:
    """The inverse of :func:`_planes`."""
    import numpy as np

    split = np.frombuffer(planes, np.uint8).reshape(number_bytes, -1)
    return np.ascontiguousarray(split.T).reshape(-1).view(f"<u{number_bytes}")
