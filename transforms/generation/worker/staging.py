"""A private copy of the next version on the engine's own device: the transports ``ipc`` and ``nccl``.

    learner's buffer ──map, or receive──► Staging ──digests, finite?──► ready ──► transfer.py loads it

All of it happens in a thread of vLLM's worker process while the engine generates. What is loaded later
is this copy, whose digests were those of the manifest: whatever the learner does to its buffer meanwhile
either shows in the digests or no longer matters.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from contextlib import nullcontext
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import torch

from schemas.broadcasts import TICKETS, Ask, Group, Round, ask_key, round_key, within
from schemas.digests import changed_blocks
from schemas.errors import RecordError
from schemas.snapshots import Broadcast, CudaMemory, Layout, Place, Source, decode_layout, decode_source, views
from transforms.generation.worker.verify import first_nonfinite

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

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

    @torch.inference_mode()
    def _copy(self, source: Source, layout: Layout) -> Layout:
        if self._buffer is None or len(self._buffer) != layout.size:
            self._buffer = torch.empty(layout.size, dtype=torch.uint8, device=self._device)
        with self._beside():
            self._receiver.receive(source, layout, self._buffer)
            _check(self._buffer, layout)
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
        self._layout = None


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
