"""How values travel between judge and answer: as JSON in frames, so that what arrives is plain data.

A value that JSON lacks is a list that begins with its kind: ``(1, 2)`` is ``["tuple", 1, 2]``, ``[1]`` is
``["list", 1]``. Objects stay where they are and travel as a name for them. Nothing that an answer sends has methods: an
``__eq__`` that is always true stays behind.
"""

import json
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from socket import socket
from typing import Any, Final

MOST_BYTES: Final = 8 << 20
"""Of one frame."""
_MOST_ITEMS: Final = 100_000
"""Of an iterator."""
_LENGTH: Final = struct.Struct("!I")
_SAFE: Final = 1 << 53
_MANY: Final[dict[str, Callable[[Any], Any]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
    "dict": dict,
}
_TYPES: Final[dict[str, type]] = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, dict)
}
_KINDS: Final = (list, tuple, set, frozenset)


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """A value as JSON can hold it.

    Args:
        value: anything.
        refer: gives the encoded name of an object that stays here.
    """
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _SAFE else ["int", hex(value)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        return ["dict", *([encode(key, refer), encode(value[key], refer)] for key in value)]
    for kind in _KINDS:
        if isinstance(value, kind):
            return [kind.__name__, *(encode(item, refer) for item in value)]
    if isinstance(value, Iterator):
        return ["iterator", *(encode(item, refer) for item in islice(value, _MOST_ITEMS))]
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    return refer(value)


def decode(data: Any, find: Callable[[Any], Any]) -> Any:
    """The value that was encoded.

    Args:
        data: of :func:`encode`.
        find: gives the object that ``["object", ...]`` names.

    Raises:
        ValueError: it was not encoded so.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("a mapping, expected a list that begins with its kind")
        return data
    kind, *items = data
    if kind == "object":
        return find(items[0])
    if kind == "int":
        return int(items[0], 16)
    if kind == "type":
        return _TYPES[items[0]]
    if kind == "complex":
        return complex(*items)
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "dict":
        return {decode(key, find): decode(value, find) for key, value in items}
    return _MANY[kind]([decode(item, find) for item in items])


def send(channel: socket, message: Any) -> None:
    """Sends one frame.

    Raises:
        ValueError: it is too long.
        OSError: nobody reads.
    """
    content = json.dumps(message).encode()
    if len(content) > MOST_BYTES:
        raise ValueError(f"{len(content)} bytes, at most {MOST_BYTES} are sent")
    channel.sendall(_LENGTH.pack(len(content)) + content)


def receive(channel: socket) -> Any:
    """Waits for one frame.

    Raises:
        EOFError: the other side is gone.
        ValueError: it is too long, or not JSON.
    """
    (length,) = _LENGTH.unpack(_read(channel, _LENGTH.size))
    if length > MOST_BYTES:
        raise ValueError(f"{length} bytes, at most {MOST_BYTES} are read")
    return json.loads(_read(channel, length))


def _read(channel: socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        piece = channel.recv(min(length - len(content), 1 << 16))
        if not piece:
            raise EOFError("the other side is gone")
        content += piece
    return bytes(content)
