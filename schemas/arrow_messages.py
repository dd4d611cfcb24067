"""Messages of an Arrow IPC stream, and what each will take in memory once it is decoded.

    value ──► read_messages() ──► decoded_size_bytes() within the cap? ──► pyarrow decodes the message

pyarrow decompresses a record batch as it reads it, and 6 kB of zstd can become 200 MB. It shows neither
the compression nor the buffers of a message, so the sizes are read here from the flatbuffer, whose form
pyarrow has verified by then (Arrow's ``Message.fbs``: slots are numbered in the order of its fields).
"""

import struct
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

_MESSAGE_HEADER: Final = 2
_BATCH_BUFFERS: Final = 2
_BATCH_COMPRESSION: Final = 3
_NOT_COMPRESSED: Final = -1
"""In the place of a decoded length: compressing this buffer did not pay."""
_PREFIX_BYTES: Final = 8


def read_messages(value: bytes) -> Iterator[pa.ipc.Message]:
    """The messages of a stream up to its end marker, or to the end of the bytes; not copied.

    The first is the schema: ``pyarrow.ipc.read_schema`` kills the process when it is given another.

    Raises:
        pyarrow.ArrowException, OSError: these bytes are no stream of messages, or it does not begin with a schema.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(value))
    messages = iter(reader.read_next_message, None)
    first = next(messages, None)
    if first is None or first.type != "schema":
        raise pa.ArrowInvalid(f"the stream begins with {first and first.type}, expected a schema")
    yield first
    yield from messages


def decoded_size_bytes(message: pa.ipc.Message) -> int:
    """What the buffers of a record batch take when they are decompressed.

    A part of the body that several buffers name counts several times.

    Raises:
        pyarrow.ArrowInvalid, struct.error: it is no record batch, or its buffers lie outside of its body.
    """
    if message.type != "record batch":
        raise pa.ArrowInvalid(f"a message of type {message.type!r}, expected a record batch")
    metadata = memoryview(message.metadata)
    batch = _follow(metadata, _slot(metadata, _follow(metadata, 0), _MESSAGE_HEADER))
    buffers = _buffers(metadata, batch)
    if not _slot(metadata, batch, _BATCH_COMPRESSION):
        return sum(length for _, length in buffers)
    body = memoryview(message.body)
    return sum(_decompressed_bytes(body, offset, length) for offset, length in buffers if length)


def _decompressed_bytes(body: memoryview, offset: int, length: int) -> int:
    decoded = int(struct.unpack_from("<q", body[offset : offset + _PREFIX_BYTES])[0])
    return length - _PREFIX_BYTES if decoded == _NOT_COMPRESSED else max(0, decoded)


def _buffers(metadata: memoryview, batch: int) -> list[tuple[int, int]]:
    """Offset and length in bytes of each buffer of the body."""
    slot = _slot(metadata, batch, _BATCH_BUFFERS)
    if not slot:
        return []
    vector = _follow(metadata, slot)
    (count,) = struct.unpack_from("<I", metadata, vector)
    return list(struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * count]))


def _follow(metadata: memoryview, at: int) -> int:
    """Where the relative pointer at ``at`` leads."""
    return at + int(struct.unpack_from("<I", metadata, at)[0])


def _slot(metadata: memoryview, table: int, number: int) -> int:
    """Where a field of a table lies; 0 if the table has none."""
    vtable = table - int(struct.unpack_from("<i", metadata, table)[0])
    size, at = struct.unpack_from("<H", metadata, vtable)[0], 4 + 2 * number
    field = int(struct.unpack_from("<H", metadata, vtable + at)[0]) if at < size else 0
    return table + field if field else 0
