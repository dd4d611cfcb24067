"""A state dict as safetensors files that are written and hashed at once, by several threads.

    tensors ──divide──► shards of at least 64 MiB ──► pieces of 8 MiB ───each in a thread──► chunk ─┬─► sha256
                                                        GPU: one copy to page-locked memory         └─► file

The division depends on nothing but names, dtypes and shapes, and a file's bytes are those of
``safetensors.torch.save``: equal weights give equal files, whoever writes them and wherever to.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from schemas.manifests import FileEntry, parallel, pieces

_SHARD_BYTES: Final = 64 << 20
_MAX_SHARDS: Final = 32
"""More files than processors only cost time."""
_CHUNK_BYTES: Final = 1 << 20
"""Of memory on a CPU: hashed and then written while the processor's cache still holds it."""
_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_METADATA: Final = {"format": "pt"}


@dataclass(frozen=True)
class Shard:
    """One file-to-be."""

    name: str
    tensors: dict[str, Any]

    @property
    def number_bytes(self) -> int:
        """Size of the smallest numbers in it: 2 or 4."""
        return min(int(tensor.element_size()) for tensor in self.tensors.values())

    @cached_property
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

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + sum(int(tensor.nbytes) for tensor in self.tensors.values())

    def parts(self, begin: int, end: int) -> list[Any]:
        """What lies between two bytes of the file: uint8 tensors of one dimension, where their bytes are."""
        import torch

        found, place = [], 0
        head = torch.frombuffer(bytearray(self.head), dtype=torch.uint8)
        for tensor in (head, *self.tensors.values()):
            first, last = max(begin, place), min(end, place + tensor.nbytes)
            if first < last:
                found.append(tensor.reshape(-1).view(torch.uint8)[first - place : last - place])
            place += tensor.nbytes
        return found


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
    put = _put_pieces if local else _put_whole
    with ThreadPoolExecutor(max_workers=parallel(sum(len(list(pieces(shard.size))) for shard in shards))) as pool:
        return put(filesystem, directory, shards, pool)


def _put_pieces(_: Any, directory: str, shards: list[Shard], pool: ThreadPoolExecutor) -> tuple[FileEntry, ...]:
    """A file takes pieces from any thread, but one at a time: threads turn to all files evenly."""
    with ExitStack() as opened:
        files = [opened.enter_context(open(f"{directory}/{shard.name}", "wb", buffering=0)) for shard in shards]
        jobs = [(end / shard.size, number, begin, end) for number, shard in enumerate(shards)
                for begin, end in pieces(shard.size)]  # fmt: skip
        found = {
            (number, begin): pool.submit(_write_piece, files[number].fileno(), shards[number], begin, end)
            for _, number, begin, end in sorted(jobs)
        }
        digests = [[found[number, begin].result() for begin, _ in pieces(shard.size)]
                   for number, shard in enumerate(shards)]  # fmt: skip
    return tuple(FileEntry.of_pieces(shard.name, shard.size, of) for shard, of in zip(shards, digests, strict=True))


def _write_piece(file: int, shard: Shard, begin: int, end: int) -> bytes:
    digest = hashlib.sha256()
    for chunk in _chunks(shard, begin, end):
        digest.update(chunk)
        _write_all(file, chunk, begin)
        begin += len(chunk)
    return digest.digest()


def _write_all(file: int, chunk: memoryview, offset: int) -> None:
    """A file may take less than it is given, as on a disk that has just filled up."""
    while len(chunk):
        written = os.pwrite(file, chunk, offset)
        chunk, offset = chunk[written:], offset + written


def _put_whole(filesystem: Any, directory: str, shards: list[Shard], pool: ThreadPoolExecutor) -> tuple[FileEntry, ...]:
    """Object stores take a file from its first byte to its last."""
    return tuple(pool.map(lambda shard: _write_whole(filesystem, f"{directory}/{shard.name}", shard), shards))


def _write_whole(filesystem: Any, path: str, shard: Shard) -> FileEntry:
    digests = []
    with filesystem.open(path, "wb") as stream:
        for begin, end in pieces(shard.size):
            digest = hashlib.sha256()
            for chunk in _chunks(shard, begin, end):
                digest.update(chunk)
                stream.write(chunk)
            digests.append(digest.digest())
    return FileEntry.of_pieces(shard.name, shard.size, digests)


def describe(shard: Shard, value: Any) -> FileEntry:
    """The manifest's entry of a shard's bytes that are in memory."""
    view = memoryview(value)
    digests = (hashlib.sha256(view[begin:end]).digest() for begin, end in pieces(len(value)))
    return FileEntry.of_pieces(shard.name, len(value), digests)


def gather(shard: Shard) -> bytearray:
    """The file's bytes in memory."""
    return bytearray().join(chunk for piece in pieces(shard.size) for chunk in _chunks(shard, *piece))


def _chunks(shard: Shard, begin: int, end: int) -> Iterator[memoryview]:
    """The bytes of a piece, a little at a time; what was given is gone when the next piece is asked for."""
    parts = shard.parts(begin, end)
    if any(part.is_cuda for part in parts):
        yield memoryview(_from_gpu(parts).numpy())
        return
    for part in parts:
        view = memoryview(part.numpy())
        yield from (view[start : start + _CHUNK_BYTES] for start in range(0, len(view), _CHUNK_BYTES))


def _from_gpu(parts: list[Any]) -> Any:
    """All parts in page-locked memory, after one wait.

    On a stream of its own: threads wait neither for each other nor for what is computed meanwhile, so the tensors
    have to be there (:meth:`trainers.engine.Engine.wait`). PyTorch keeps page-locked memory that is free for whoever
    asks next.
    """
    import torch

    device = next(part.device for part in parts if part.is_cuda)
    staging = torch.empty(sum(map(len, parts)), dtype=torch.uint8, pin_memory=True)
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for target, part in zip(torch.split(staging, [len(part) for part in parts]), parts, strict=True):
            target.copy_(part, non_blocking=True)
    stream.synchronize()
    return staging
