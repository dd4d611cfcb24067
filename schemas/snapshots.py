"""Weights as one flat buffer: how tensors lie in it (``layout.json``) and where it is (``SOURCE.json``).

    MANIFEST.json ──sha256──► layout.json ──digests──► the bytes, wherever they are
    SOURCE.json: where to get them; proves nothing, because what it leads to is checked against the manifest

``layout.json`` is the file of a version that travels through a GPU's memory (``ipc``, ``nccl``).
``SOURCE.json`` also says of a version in the store that it was written as a delta. Neither holds code,
nor a path: a worker builds paths from its own root and never unpickles anything.
"""

import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from schemas.digests import BLOCK_BYTES, WORD_BYTES
from schemas.errors import RecordError
from schemas.manifests import FileEntry
from schemas.records import first_fault

LAYOUT_NAME: Final = "layout.json"
SOURCE_NAME: Final = "SOURCE.json"
_ALIGNMENT_BYTES: Final = 64
_ELEMENT_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}

Hex = Annotated[str, Field(pattern="^([0-9a-f]{2})+$", max_length=4096)]
Size = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(_Part):
    """One tensor of the buffer, contiguous in row-major order."""

    name: str
    """In the Hugging Face checkpoint."""
    dtype: Literal["float32", "bfloat16", "float16"]
    shape: tuple[Size, ...]
    offset: Size
    """Of its first byte in the buffer."""

    @property
    def nbytes(self) -> int:
        """Bytes from the offset on."""
        return math.prod(self.shape) * _ELEMENT_BYTES[self.dtype]


class Layout(_Part):
    """What the buffer of a version holds. Tensors do not overlap; gaps between them are zero.

    Example::

        {"size": 128, "tensors": [{"name": "model.norm.weight", "dtype": "bfloat16", "shape": [3], "offset": 64}],
         "digests": ["0f…"]}
    """

    size: Annotated[int, Field(ge=WORD_BYTES, lt=1 << 48, multiple_of=WORD_BYTES)]
    """Bytes of the buffer."""
    tensors: tuple[Place, ...] = Field(min_length=1)
    digests: tuple[Annotated[str, Field(pattern="^[0-9a-f]{32}$")], ...] = ()
    """Of every block of the buffer: see :mod:`schemas.digests`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({place.name for place in self.tensors}) < len(self.tensors):
            raise ValueError("two tensors have one name")
        end = 0
        for place in self.tensors:
            if place.offset < end or place.offset % _ALIGNMENT_BYTES:
                raise ValueError(f"{place.name} begins at {place.offset}, expected a multiple of 64 from {end} on")
            end = place.offset + place.nbytes
        if end > self.size:
            raise ValueError(f"tensors end at byte {end}, the buffer has {self.size}")
        if self.digests and len(self.digests) != -(-self.size // BLOCK_BYTES):
            raise ValueError(f"{len(self.digests)} digests for {self.size} bytes")
        return self


def lay_out(tensors: dict[str, Any]) -> Layout:
    """Where the tensors of a state dict go in a buffer, in their order; without digests.

    Raises:
        ValueError: a tensor has a dtype that weights do not have.
    """
    places, end = [], 0
    for name, tensor in tensors.items():
        dtype: Any = str(tensor.dtype).removeprefix("torch.")
        place = Place(name=name, dtype=dtype, shape=tuple(tensor.shape), offset=end)
        places.append(place)
        end += -(-place.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return Layout(size=max(end, _ALIGNMENT_BYTES), tensors=tuple(places))


def views(buffer: Any, layout: Layout) -> dict[str, Any]:
    """The tensors in a uint8 buffer, without a copy."""
    import torch

    return {
        place.name: buffer[place.offset : place.offset + place.nbytes]
        .view(getattr(torch, place.dtype))
        .view(place.shape)
        for place in layout.tensors
    }


class Delta(_Part):
    """The files of the manifest are not there; they follow from an older version's and from these."""

    kind: Literal["delta"] = "delta"
    base: Annotated[int, Field(ge=1, lt=1 << 63)]
    """The version whose files the deltas change."""
    base_manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    files: tuple[FileEntry, ...] = Field(min_length=1)
    """One delta for each file of the manifest, in its order: see :mod:`schemas.deltas`."""


class CudaMemory(_Part):
    """A learner's buffer on a GPU, to be mapped by other processes of the host (CUDA IPC).

    The fields are those of PyTorch's shared CUDA storages, bytes as hexadecimal digits.
    """

    kind: Literal["ipc"] = "ipc"
    gpu: str = Field(pattern="^[0-9a-fA-F-]{1,64}$")
    """The GPU's UUID; an engine on another one cannot map the buffer."""
    handle: Hex
    """``cudaIpcMemHandle_t`` of the allocation, as PyTorch writes it."""
    size: Size
    """Bytes of the storage."""
    offset: Size
    """Of the storage in the allocation."""
    counter: Annotated[str, Field(pattern=r"^/torch_\d+_\d+_\d+$")]
    """Name of the shared memory in which PyTorch counts users."""
    counter_offset: Size
    event: Hex
    """``cudaIpcEventHandle_t``: recorded when the storage was shared."""
    event_sync: bool
    """Whether the event has to be waited for."""


class Broadcast(_Part):
    """A learner that sends its buffer to every engine that asks (NCCL between GPUs, gloo between CPUs)."""

    kind: Literal["nccl"] = "nccl"
    version: Annotated[int, Field(ge=1, lt=1 << 63)]
    host: str = Field(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")
    """Address of the learner's rendezvous."""
    port: Annotated[int, Field(ge=1, le=65535)]
    timeout_s: Annotated[float, Field(gt=0, le=3600)]
    """How long one engine waits for the others and for the bytes."""


Source = Annotated[Delta | CudaMemory | Broadcast, Field(discriminator="kind")]
_SOURCES: Final[TypeAdapter[Source]] = TypeAdapter(Source)


def decode_source(value: bytes | str) -> Source:
    """Reads ``SOURCE.json``.

    Raises:
        RecordError: ``bad_source``.
    """
    try:
        return _SOURCES.validate_json(value)
    except ValidationError as error:
        raise RecordError("bad_source", first_fault(error)) from error


def decode_layout(value: bytes | str) -> Layout:
    """Reads ``layout.json``.

    Raises:
        RecordError: ``bad_tensors``.
    """
    try:
        layout = Layout.model_validate_json(value)
    except ValidationError as error:
        raise RecordError("bad_tensors", first_fault(error)) from error
    if not layout.digests:
        raise RecordError("bad_tensors", f"{LAYOUT_NAME} holds no digests")
    return layout
