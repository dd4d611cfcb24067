"""An adapter in a Hugging Face model: peft's layers, of which the learner trains and publishes only A and B.

    model ──add_adapter──► the same model, its own weights frozen ──► adapter_of ──► adapter_model.safetensors
                             └─ without_adapter: the model of the beginning, which is the reference policy
    model's files + adapter's file ──merge──► whole weights, for export

The layers are put into the model itself, so that everything else here (packed attention, activation checkpointing,
ZeRO) sees the model that it knows.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch

from schemas.config import RunConfig
from schemas.errors import ModelError
from schemas.lora import ADAPTER_NAME, LoraConfig, adapter_shapes, base_sha256, names_of, published_name

_PART: Final = ".lora_"
"""In the names of peft's parameters."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is said of an adapter wherever one is kept or published."""

    config: bytes
    """Of ``adapter_config.json``."""
    base_sha256: str
    """Of the weights that it belongs to."""

    @classmethod
    def of(cls, config: RunConfig) -> Self | None:
        """The one that a run trains; null if it trains whole weights."""
        model = Path(config.model.path)
        lora = config.learner.lora
        return cls(lora.encode(model.name), base_sha256(model)) if lora.trains_adapter else None


def add_adapter(causal: Any, model: Path, lora: LoraConfig, seed: int) -> None:
    """Puts an adapter into a model, which freezes all else; it changes nothing yet, because its B are zero.

    Args:
        causal: a causal language model on the CPU.
        model: the directory that it came from, whose names engines go by.
        lora: which adapter.
        seed: of the A, so that ranks and replays begin alike.

    Raises:
        ModelError: the model lacks one of the layers, or has something else of that name.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    shapes = adapter_shapes(lora, _shapes_in(model))
    _require_linear(causal, lora)
    wanted = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(wanted, causal).eval()
    found = {name: tuple(tensor.shape) for name, tensor in adapter_of(dict(causal.named_parameters())).items()}
    if found != shapes:
        odd = sorted(found.items() ^ shapes.items())[0][0]
        raise ModelError(f"learner.lora: {type(causal).__name__} has {odd} in a form that engines do not know")


def _shapes_in(model: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return shapes


def _require_linear(causal: Any, lora: LoraConfig) -> None:
    head = causal.get_output_embeddings()
    for name, module in causal.named_modules():
        if name.rsplit(".", 1)[-1] not in lora.target_modules:
            continue
        if not isinstance(module, torch.nn.Linear) or module is head:
            kind = "the output head" if module is head else type(module).__name__
            raise ModelError(f"learner.lora.target_modules: {name} is {kind}, expected a linear layer inside the model")


def adapter_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's A and B under their published names, where they are.

    Args:
        tensors: by the model's names; others are left out.
    """
    return {published_name(name): each.detach() for name, each in tensors.items() if _PART in name}


def without_adapter(causal: Any) -> AbstractContextManager[None]:
    """For a while the model is as it was before there was an adapter."""
    from peft.helpers import rescale_adapter_scale

    context: AbstractContextManager[None] = rescale_adapter_scale(causal, 0.0)
    return context


def merge(model: Path, adapter: Path, lora: LoraConfig, dtype: torch.dtype, target: Path) -> list[Path]:
    """Writes the weights of a model with its adapter added, in files of the same names.

    Sums are made in float32.

    Args:
        model: the directory that the adapter belongs to.
        adapter: a directory with ``adapter_model.safetensors``.
        lora: as the adapter was trained.
        dtype: of what is written.
        target: a directory.

    Returns:
        The files.
    """
    from safetensors.torch import load_file, save_file

    parts, written = load_file(adapter / ADAPTER_NAME), []
    for file in sorted(model.glob("*.safetensors")):
        tensors = {name: _merged(name, tensor, parts, lora).to(dtype) for name, tensor in load_file(file).items()}
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        written.append(target / file.name)
    return written


def _merged(name: str, weight: torch.Tensor, parts: dict[str, torch.Tensor], lora: LoraConfig) -> torch.Tensor:
    a, b = (parts.get(each) for each in names_of(name))
    if a is None or b is None:
        return weight
    return weight.float() + (b.float() @ a.float()) * (lora.alpha / lora.rank)
