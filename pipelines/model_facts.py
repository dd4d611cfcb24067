"""A model directory in figures, from its configuration and the heads of its files; no weight is read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.errors import ModelError

_HEAD_LENGTH_BYTES: Final = 8
"""A safetensors file begins with the length of its JSON head, little-endian."""
_LONGEST_HEAD_BYTES: Final = 100_000_000
"""As in the library safetensors."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What memory and disk depend on. Example: 134,515,008 parameters of ``F32`` for SmolLM2-135M."""

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    """Of every tensor, by name."""
    dtypes: tuple[str, ...]
    """Of the files, as safetensors writes them."""
    file_bytes: int
    """Of all safetensors files."""
    kv_numbers_per_token: int | None
    """Keys and values of one token over all layers; null where config.json does not say."""
    max_tokens: int | None
    """``max_position_embeddings``."""

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(map(math.prod, self.shapes.values()))


def read_model(directory: Path) -> ModelFacts:
    """The facts of a Hugging Face directory.

    Raises:
        ModelError: a file cannot be read or is cut short.
    """
    try:
        config = json.loads((directory / "config.json").read_bytes())
        files = sorted(directory.glob("*.safetensors"))
        heads = [read_head(file) for file in files]
        size = sum(file.stat().st_size for file in files)
        return _facts(config, heads, size)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:  # the last three: of another form
        raise ModelError(f"model {str(directory)!r} cannot be read: {error!r}; save it again") from error


def _facts(config: dict[str, Any], heads: list[dict[str, Any]], size: int) -> ModelFacts:
    text = {**config, **(config.get("text_config") or {})}
    tensors = {name: entry for head in heads for name, entry in head.items() if name != "__metadata__"}
    return ModelFacts(
        architecture=", ".join(config.get("architectures") or ["unknown"]),
        shapes={name: tuple(entry["shape"]) for name, entry in tensors.items()},
        dtypes=tuple(sorted({entry["dtype"] for entry in tensors.values()})),
        file_bytes=size,
        kv_numbers_per_token=_kv_numbers(text),
        max_tokens=text.get("max_position_embeddings"),
    )


def read_head(file: Path) -> dict[str, Any]:
    """The head of a safetensors file: dtype, shape and place of each tensor.

    Raises:
        ValueError: it is no such file, or is shorter than its head says.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEAD_LENGTH_BYTES), "little")
        if not 0 < length <= _LONGEST_HEAD_BYTES:
            raise ValueError(f"{file.name} is no safetensors file")
        head: dict[str, Any] = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
    expected = _HEAD_LENGTH_BYTES + length + max(ends, default=0)
    if file.stat().st_size != expected:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes, its head says {expected:,}")
    return head


def _kv_numbers(text: dict[str, Any]) -> int | None:
    """Keys and values: 2 × layers × heads that keep them × numbers of a head."""
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not layers or not heads or text.get("kv_lora_rank"):
        return None
    of_head = text.get("head_dim") or text.get("hidden_size", 0) // heads
    return 2 * layers * (text.get("num_key_value_heads") or heads) * of_head or None
