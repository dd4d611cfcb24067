"""A state dict as safetensors files that are written and hashed at once, by several threads.

    tensors ──divide──► shards of at least 64 MiB ──each in a thread──► chunk ─┬─► sha256
                                                                              └─► file

The division depends on nothing but names, dtypes and shapes, and a file's bytes are those of
``safetensors.torch.save``: equal weights give equal files, whoever writes them and wherever to.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from schemas.manifests import FileEntry, parallel

_SHARD_BYTES: Final = 64 << 20
_MAX_SHARDS: Final = 32
"""More files than processors only cost time."""
_CHUNK_BYTES: Final = 1 << 20
"""Hashed and then written while the processor's cache still holds it; each asks twice for Python's lock."""
_STAGING_BYTES: Final = 32 << 20
"""Page-locked memory of one thread, through which tensors leave a GPU."""
_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_METADATA: Final = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file-to-be."""

    name: str
    tensors: dict[str, Any]

    @property
    def number_bytes(self) -> int:
        """Size of the smallest numbers in it: 2 or 4."""
        return min(int(tensor.element_size()) for tensor in self.tensors.values())

    def head(self) -> bytes:
        """The file's first bytes: the length of the JSON that follows, and where each tensor lies."""
        fields: dict[str, Any] = {"__metadata__": _METADATA}
        end = 0
        for name, tensor in self.tensors.items():
            begin, end = end, end + tensor.nbytes
            dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
            fields[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def chunks(self) -> Iterator[memoryview]:
        """The file's bytes, a piece at a time; a piece is gone when the next one is asked for."""
        yield memoryview(self.head())
        for tensor in self.tensors.values():
            yield from _host_bytes(tensor)


def divide(tensors: dict[str, Any]) -> list[Shard]:
    """Files of a state dict, 1 or more; a single one is called ``model.safetensors``."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    limit = max(_SHARD_BYTES, sum(tensor.nbytes for tensor in tensors.values()) // _MAX_SHARDS)
    groups: list[dict[str, Any]] = [{}]
    filled = 0
    for name, tensor in ordered:
        if filled >= limit:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    return [Shard(_name(number, len(groups)), group) for number, group in enumerate(groups, 1)]


def _name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def write(filesystem: Any, directory: str, shards: list[Shard], *, local: bool) -> tuple[FileEntry, ...]:
    """Writes all shards below a directory and describes them for the manifest."""
    with ThreadPoolExecutor(max_workers=parallel(len(shards))) as pool:
        return tuple(pool.map(lambda shard: _write(filesystem, directory, shard, local=local), shards))


def _write(filesystem: Any, directory: str, shard: Shard, *, local: bool) -> FileEntry:
    path = f"{directory}/{shard.name}"
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) if local else filesystem.open(path, "wb") as stream:
        for chunk in shard.chunks():
            for begin in range(0, len(chunk), _CHUNK_BYTES):
                piece = chunk[begin : begin + _CHUNK_BYTES]
                digest.update(piece)
                size += _write_all(stream, piece)
    return FileEntry(name=shard.name, size=size, sha256=digest.hexdigest())


def _write_all(stream: Any, piece: memoryview) -> int:
    """An unbuffered file may take less than it is given, as on a disk that has just filled up."""
    written = 0
    while written < len(piece):
        written += stream.write(piece[written:])
    return written


def describe(shard: Shard, value: Any) -> FileEntry:
    """The manifest's entry of a shard's bytes that are in memory."""
    return FileEntry(name=shard.name, size=len(value), sha256=hashlib.sha256(value).hexdigest())


def gather(shard: Shard) -> bytearray:
    """The file's bytes in memory."""
    return bytearray().join(shard.chunks())


def _host_bytes(tensor: Any) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor: in place on a CPU, through page-locked memory from a GPU."""
    import torch

    flat = tensor.reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        yield memoryview(flat.numpy())
        return
    yield from _from_gpu(flat)


def _from_gpu(flat: Any) -> Iterator[memoryview]:
    """On a stream of its own, after what was asked of the GPU so far: threads do not wait for each other."""
    import torch

    staging = torch.empty(min(_STAGING_BYTES, len(flat)), dtype=torch.uint8, pin_memory=True)
    stream: Any = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.default_stream(flat.device))
    for piece in flat.split(_STAGING_BYTES):
        with torch.cuda.stream(stream):
            staging[: len(piece)].copy_(piece, non_blocking=True)
        stream.synchronize()
        yield memoryview(staging[: len(piece)].numpy())
