"""Copies of the weights in the learner's own memory, for engines to read: the transports ``ipc`` and ``nccl``.

    state dict ──copy on the GPU──► buffer (weights.buffers of them, in turn) ──► digests ──► layout.json
                                       └──► mapped by the engine (ipc), or sent to it (trainers/broadcast.py)

The next optimizer step changes the weights, not the buffer. A buffer is written again after as many
versions as there are buffers; an engine that still reads it then finds other digests than those of the
manifest and refuses what it read.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas.digests import changed_blocks, digests
from schemas.errors import ConfigError
from schemas.snapshots import CudaMemory, Layout, lay_out, views


@dataclass
class Snapshot:
    """One buffer with what it holds now."""

    buffer: Any
    """uint8, of one dimension."""
    layout: Layout
    """With digests."""
    version: int
    in_use: threading.Lock = field(default_factory=threading.Lock)
    """Held while the buffer is being sent or written."""
    memory: CudaMemory | None = None
    """How another process maps it; null before it was asked for."""

    def fault(self) -> str | None:
        """What is wrong with the bytes; null if they still have their digests."""
        wrong = changed_blocks(self.buffer, self.layout.digests)
        return f"blocks {wrong[:5]} of the buffer have changed" if wrong else None


class Snapshots:
    """The buffers, made at the first use and never given back: mappings of them stay good."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: list[Snapshot] = []

    def take(self, tensors: dict[str, Any], version: int) -> Snapshot:
        """Copies the weights, which a GPU has computed, into the buffer whose turn it is.

        Returns:
            When the bytes are there and their digests known.
        """
        layout = lay_out(tensors)
        device = next(iter(tensors.values())).device
        with _beside(device):
            snapshot = self._next(layout, device)
            with snapshot.in_use:
                snapshot.version = version
                _copy(tensors, views(snapshot.buffer, layout))
                snapshot.layout = layout.model_copy(update={"digests": digests(snapshot.buffer)})
        self._taken.append(snapshot)
        return snapshot

    def _next(self, layout: Layout, device: Any) -> Snapshot:
        import torch

        if len(self._taken) >= self._count:
            oldest = self._taken.pop(0)
            if oldest.layout.tensors == layout.tensors:
                return oldest
        buffer = torch.zeros(layout.size, dtype=torch.uint8, device=device)
        return Snapshot(buffer, layout, version=0)

    def of(self, version: int) -> Snapshot | None:
        """The buffer that holds a version; null if it was written over."""
        return next((snapshot for snapshot in self._taken if snapshot.version == version), None)


@contextmanager
def _beside(device: Any) -> Iterator[None]:
    """A stream of its own on a GPU, so that nothing waits for what the learner computes meanwhile."""
    import torch

    if device.type != "cuda":
        yield
        return
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _copy(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    import torch

    by_dtype: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        by_dtype.setdefault(tensor.dtype, []).append(name)
    for names in by_dtype.values():
        torch._foreach_copy_([places[name] for name in names], [tensors[name] for name in names])


def share(snapshot: Snapshot) -> CudaMemory:
    """Exports a buffer to other processes of the host; once, so that the handle stays the same.

    Raises:
        ConfigError: the learner does not compute on a CUDA GPU.
    """
    import torch

    if snapshot.buffer.device.type != "cuda":
        raise ConfigError(
            f"weights.transport = 'ipc' needs learner and engine on one CUDA GPU, and this learner computes on "
            f'{snapshot.buffer.device.type}; set weights.transport = "store"'
        )
    if snapshot.memory is None:
        _, handle, size, offset, counter, counter_offset, event, sync = snapshot.buffer.untyped_storage()._share_cuda_()
        snapshot.memory = CudaMemory(
            gpu=str(torch.cuda.get_device_properties(snapshot.buffer.device).uuid),
            handle=handle.hex(),
            size=size,
            offset=offset,
            counter=counter.decode(),
            counter_offset=counter_offset,
            event=event.hex(),
            event_sync=sync,
        )
    return snapshot.memory
