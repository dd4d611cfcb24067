"""A private copy of the next version on the engine's own device.

    learner's buffer ──map, or receive──► Staging ──digests, finite?──► ready ──► transfer.py loads it
    verified files ──page-locked memory──► Staging ─────────────────────► ready

The first are the transports ``ipc`` and ``nccl``. Files were verified before; on a GPU they are brought there while
it generates. All of it happens in a thread of vLLM's worker process while the engine generates. What is loaded later
is this copy, whose digests were those of the manifest: whatever the learner does to its buffer meanwhile
either shows in the digests or no longer matters.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import torch

from schemas.broadcasts import TICKETS, Ask, Group, Round, ask_key, round_key, within
from schemas.digests import changed_blocks
from schemas.errors import RecordError
from schemas.manifests import parallel, pieces
from schemas.snapshots import (
    Broadcast,
    CudaMemory,
    Layout,
    Place,
    Source,
    decode_layout,
    decode_source,
    lay_out,
    views,
)
from transforms.generation.worker.verify import first_nonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_COPY_BYTES: Final = 32 << 20
"""That one thread copies in one go: for each it asks several times for Python's lock, which the engine hardly lets go.
SmolLM2-135M took 0.06 s in pieces of 16 MiB and 0.12 s in pieces of 8."""
_READERS: Final = 8
"""Threads that copy files: as many as fill the bus to a GPU."""
_DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FAILURES: Final = (RuntimeError, TimeoutError, OSError, ValueError)
"""What CUDA, PyTorch's stores and its groups raise."""


class Staging:
    """One version at a time; its buffer stays allocated, so that the next one finds room."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._receiver = Receiver(device)
        self._stream: Any = None
        self._thread: threading.Thread | None = None
        self._buffer: torch.Tensor | None = None
        self._layout: Layout | None = None
        self._refusal = ""

    def begin(self, source: str, layout: str) -> None:
        """Starts to copy a version: the texts of ``SOURCE.json`` and ``layout.json``."""
        if self._thread is not None:
            self._thread.join()
        self._layout, self._refusal = None, ""
        self._thread = threading.Thread(target=self._run, args=(source, layout), name="staging", daemon=True)
        self._thread.start()

    def begin_files(self, files: list[str]) -> None:
        """Starts to copy verified safetensors files."""
        if self._thread is not None:
            self._thread.join()
        self._layout, self._refusal = None, ""
        self._thread = threading.Thread(target=self._run_files, args=(files,), name="staging", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether a version is staged."""
        return self._layout is not None

    def outcome(self, wait_s: float = 0.0) -> str | None:
        """Null if the copy is still being made after a while, empty if it is good, else ``reason: detail``."""
        if self._thread is not None:
            self._thread.join(wait_s)
            if self._thread.is_alive():
                return None
        return self._refusal

    def _run(self, source: str, layout: str) -> None:
        try:
            self._layout = self._copy(decode_source(source), decode_layout(layout))
        except RecordError as refusal:
            self._refusal = f"{refusal.reason}: {refusal.detail}"
        except _FAILURES as error:
            self._refusal = f"unreadable: {error}"[:500]

    def _run_files(self, files: list[str]) -> None:
        """Without room on the GPU for the copy nothing is staged, and nothing refused: the files are loaded."""
        try:
            self._layout = self._copy_files(files)
        except torch.OutOfMemoryError:
            self._buffer = None
        except (*_FAILURES, RecordError) as error:
            self._refusal = f"vanished: {error}"[:500]

    @torch.inference_mode()
    def _copy_files(self, files: list[str]) -> Layout:
        contents = [read_head(path) for path in files]
        layout = lay_out({name: tensor for content in contents for name, tensor in content.tensors.items()})
        buffer = self._room(layout.size)
        targets = views(buffer, layout)
        jobs = [(content, *piece) for content in contents for piece in pieces(content.size, _COPY_BYTES)]
        with ThreadPoolExecutor(max_workers=min(_READERS, parallel(len(jobs)))) as pool:
            list(pool.map(lambda job: _bring(job[0], job[1:], targets), jobs))
        return layout

    def _room(self, size: int) -> torch.Tensor:
        if self._buffer is None or len(self._buffer) != size:
            self._buffer = None  # so that there is room for the next
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._buffer

    @torch.inference_mode()
    def _copy(self, source: Source, layout: Layout) -> Layout:
        buffer = self._room(layout.size)
        with self._beside():
            self._receiver.receive(source, layout, buffer)
            _check(buffer, layout)
        return layout

    def _beside(self) -> AbstractContextManager[Any]:
        """A CUDA stream of its own; the engine's goes on. One for all versions: memory is cached by stream."""
        if self._device.type != "cuda":
            return nullcontext()
        torch.cuda.set_device(self._device)
        self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._stream)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights, once the outcome is good."""
        if self._layout is None or self._buffer is None:
            raise RuntimeError("no version is staged")
        return views(self._buffer, self._layout)

    @property
    def form(self) -> tuple[int, tuple[Place, ...]]:
        """Where the staged tensors lie: the same for two versions if they lie in the same places."""
        if self._layout is None or self._buffer is None:
            raise RuntimeError("no version is staged")
        return self._buffer.data_ptr(), self._layout.tensors

    def close(self) -> None:
        """Forgets the version, not the buffer."""
        if self._thread is not None:
            self._thread.join()  # what is still being copied would be ready later
        self._layout, self._refusal = None, ""


@dataclass(frozen=True, slots=True)
class Content:
    """What a safetensors file holds."""

    path: str
    begin: int
    """Of the first tensor's bytes in the file."""
    size: int
    """Bytes of all tensors; they lie one after the other."""
    tensors: dict[str, torch.Tensor]
    """Without memory, for their shapes and dtypes, in the order of the file."""


def read_head(path: str) -> Content:
    """Reads where the tensors of a safetensors file lie; of one that :mod:`verify` has let pass."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        fields = json.loads(stream.read(length))
    fields.pop("__metadata__", None)
    ordered = sorted(fields.items(), key=lambda item: item[1]["data_offsets"])
    tensors = {name: torch.empty(of["shape"], dtype=_DTYPES[of["dtype"]], device="meta") for name, of in ordered}
    return Content(path, 8 + length, sum(tensor.nbytes for tensor in tensors.values()), tensors)


def _bring(content: Content, piece: tuple[int, int], targets: dict[str, torch.Tensor]) -> None:
    """Copies the bytes between two places of a file's tensors, on a stream of the thread."""
    (begin, end), device = piece, next(iter(targets.values())).device
    pinned = torch.empty(end - begin, dtype=torch.uint8, pin_memory=device.type == "cuda")
    with open(content.path, "rb", buffering=0) as stream:
        stream.seek(content.begin + begin)
        read = stream.readinto(memoryview(pinned.numpy()))
    if read != end - begin:
        raise OSError(f"{content.path}: {read} bytes at {content.begin + begin}, expected {end - begin}")
    with _beside(device):
        place = 0
        for name, tensor in content.tensors.items():
            first, last = max(begin, place), min(end, place + tensor.nbytes)
            if first < last:
                flat = targets[name].reshape(-1).view(torch.uint8)
                flat[first - place : last - place].copy_(pinned[first - begin : last - begin], non_blocking=True)
            place += tensor.nbytes


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """A CUDA stream of its own, for what has ended when this ends."""
    if device.type != "cuda":
        yield
        return
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _check(buffer: torch.Tensor, layout: Layout) -> None:
    """Reads results back, so the copy has ended when this returns.

    Raises:
        RecordError: ``bad_files`` or ``nonfinite``.
    """
    if wrong := changed_blocks(buffer, layout.digests):
        raise RecordError("bad_files", f"blocks {wrong[:5]} of {len(layout.digests)} are not those of the manifest; "
                          "the learner wrote the next version over them, or they are damaged")  # fmt: skip
    if not _sums_are_finite(buffer, layout) and (name := first_nonfinite(views(buffer, layout))):
        raise RecordError("nonfinite", f"{name} holds a number that is not finite")


def _sums_are_finite(buffer: torch.Tensor, layout: Layout) -> bool:
    """One sum over all neighbours of one dtype: two kernels for a model, instead of some for each of its tensors.

    Gaps between tensors are zero. A sum that is not finite may just have overflowed.
    """
    sums = []
    for dtype, neighbours in groupby(layout.tensors, lambda place: place.dtype):
        places = list(neighbours)
        end = places[-1].offset + places[-1].nbytes
        sums.append(buffer[places[0].offset : end].view(getattr(torch, dtype)).sum(dtype=torch.float32))
    return bool(torch.stack(sums).isfinite().all())


class Receiver:
    """Fills a buffer from wherever a learner offers one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._member = uuid.uuid4().hex
        self._address: tuple[str, int] | None = None
        self._store: Any = None
        self._group: Group | None = None

    def receive(self, source: Source, layout: Layout, buffer: torch.Tensor) -> None:
        """Copies a learner's buffer.

        Raises:
            RecordError: ``unreadable`` or ``vanished``.
            RuntimeError: CUDA or the group failed.
        """
        if isinstance(source, CudaMemory):
            buffer.copy_(_map(source, self._device)[: len(buffer)])
            torch.cuda.current_stream(self._device).synchronize()  # the mapping is let go of here
        elif isinstance(source, Broadcast):
            self._receive(source, layout, buffer)
        else:
            raise RecordError("bad_source", f"{source.kind} cannot be received")

    def _receive(self, source: Broadcast, layout: Layout, buffer: torch.Tensor) -> None:
        deadline = time.monotonic() + source.timeout_s
        try:
            self._connect(source)
            place = self._ask(source, layout)
            within(deadline - time.monotonic(), lambda: self._join(source, place, buffer, deadline))
        except _FAILURES as error:
            self._leave()
            raise RecordError("unreadable", f"{source.host}:{source.port}: {error}"[:500]) from error

    def _connect(self, source: Broadcast) -> None:
        from torch._C._distributed_c10d import TCPStore

        if self._address != (source.host, source.port):
            self._leave()
            with socket.create_connection((source.host, source.port), source.timeout_s):
                pass  # PyTorch would try again and again, and write a page about each failure
            patience = timedelta(seconds=source.timeout_s)
            self._store = TCPStore(source.host, source.port, timeout=patience, wait_for_workers=False)
            self._address = (source.host, source.port)

    def _ask(self, source: Broadcast, layout: Layout) -> Round:
        ticket = self._store.add(TICKETS, 1)
        ask = Ask(member=self._member, version=source.version, size=layout.size)
        self._store.set(ask_key(ticket), ask.model_dump_json())
        self._store.wait([round_key(ticket)], timedelta(seconds=source.timeout_s))
        place = Round.model_validate_json(self._store.get(round_key(ticket)))
        self._store.delete_key(round_key(ticket))
        if place.refusal:
            raise RecordError("vanished", place.refusal)
        return place

    def _join(self, source: Broadcast, place: Round, buffer: torch.Tensor, deadline: float) -> None:
        remaining_s = max(0.0, deadline - time.monotonic())
        if self._group is None or self._group.place != place:
            self._part()
            self._group = Group(self._store, place, self._device, source.host, remaining_s)
        self._group.broadcast(buffer, remaining_s)

    def _part(self) -> None:
        if self._group is not None:
            self._group.abort()
            self._group = None

    def _leave(self) -> None:
        self._part()
        self._store = self._address = None


def _map(source: CudaMemory, device: torch.device) -> torch.Tensor:
    """The learner's buffer itself.

    Raises:
        RecordError: ``unreadable``: it is not on this GPU.
        RuntimeError: CUDA refuses, for example because the learner is gone.
    """
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type
    if gpu != source.gpu:
        raise RecordError("unreadable", f"the weights are in the memory of GPU {source.gpu}, the engine is on {gpu}")
    index = device.index or 0
    where = (index, bytes.fromhex(source.handle), source.size, source.offset)
    users = (source.counter.encode(), source.counter_offset, bytes.fromhex(source.event), source.event_sync)
    mapped: torch.Tensor = rebuild_cuda_tensor(  # type: ignore[no-untyped-call]
        torch.Tensor, (source.size,), (1,), 0, torch.UntypedStorage, torch.uint8, *where, False, *users
    )
    return mapped
