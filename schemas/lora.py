"""Adapters instead of whole weights: what an adapter of a model looks like, for whoever makes, loads or merges one.

    learner.lora ─┬─► adapter_config.json: the same bytes wherever they are needed
    model's shapes┴─► names and shapes of adapter_model.safetensors
    model's files ──► sha256 of what the adapter belongs to

A matrix W of the model becomes W + alpha / rank * B A, with A of (rank, in) and B of (out, rank) numbers; only A and
B are trained and published. Source: Hu et al., LoRA, 2021, arXiv:2106.09685. The forms are those of peft, which vLLM
reads too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, field_validator

from schemas.errors import ModelError
from schemas.manifests import describe, parallel, sha256
from schemas.sections import Positive, Section

ADAPTER_NAME: Final = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME: Final = "adapter_config.json"
KIND: Final = "adapter"
"""Of the facts of a version's manifest; whole weights are ``weights``."""
MAX_RANK: Final = 512
"""vLLM takes no larger one."""
_PREFIX: Final = "base_model.model."
"""Before the name of a module, in peft's files."""
_WEIGHT: Final = ".weight"

Shape = tuple[int, ...]


class LoraConfig(Section):
    """An adapter that is trained instead of the model's own weights."""

    rank: Annotated[int, Field(ge=0, le=MAX_RANK)] = 0
    """Of the matrices of the adapter; 0 trains the model's own weights."""
    alpha: Positive = 32
    """The adapter's product is added times alpha / rank."""
    target_modules: tuple[Annotated[str, Field(pattern="^[A-Za-z0-9_]+$")], ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Names of the linear layers that get one, in every layer of the model."""

    @field_validator("target_modules")
    @classmethod
    def _are_some(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError("expected names of linear layers, each of them once")
        return names

    @property
    def trains_adapter(self) -> bool:
        """Whether there is an adapter."""
        return self.rank > 0

    def encode(self, base_model: str) -> bytes:
        """The bytes of ``adapter_config.json``.

        Args:
            base_model: name of the model that the adapter belongs to.
        """
        tree = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.target_modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "inference_mode": True,
        }
        return json.dumps(tree, indent=1, sort_keys=True).encode() + b"\n"


def adapter_shapes(lora: LoraConfig, model: Mapping[str, Shape]) -> dict[str, Shape]:
    """What an adapter's file holds.

    Args:
        lora: which layers it has parts for.
        model: the shape of every tensor of the model by its Hugging Face name.

    Returns:
        Shapes by name, such as ``base_model.model.model.layers.0.mlp.up_proj.lora_A.weight``.

    Raises:
        ModelError: the model has no such layer.
    """
    matrices = {name.removesuffix(_WEIGHT): shape for name, shape in model.items() if _is_matrix(name, shape)}
    kinds = {_last(module) for module in matrices}
    if unknown := [name for name in lora.target_modules if name not in kinds]:
        raise ModelError(
            f"learner.lora.target_modules: the model has no {', '.join(unknown)}; it has {', '.join(sorted(kinds))}"
        )
    shapes: dict[str, Shape] = {}
    for module, (rows, columns) in matrices.items():
        if _last(module) in lora.target_modules:
            shapes[f"{_PREFIX}{module}.lora_A.weight"] = (lora.rank, columns)
            shapes[f"{_PREFIX}{module}.lora_B.weight"] = (rows, lora.rank)
    return shapes


def _is_matrix(name: str, shape: Shape) -> bool:
    return name.endswith(_WEIGHT) and len(shape) == 2


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def published_name(parameter: str) -> str:
    """The name in the file of a parameter of peft's layers. Example: ``model.x.lora_A.default.weight``."""
    return _PREFIX + parameter.replace(".default.", ".")


def names_of(weight: str) -> tuple[str, str]:
    """The adapter's A and B for a tensor of the model. Example: ``model.layers.0.mlp.up_proj.weight``."""
    module = _PREFIX + weight.removesuffix(_WEIGHT)
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def base_sha256(model: Path) -> str:
    """Of a model's weights: names, sizes and hashes of its safetensors files.

    An adapter to other weights of the same shapes would be nonsense that nothing else notices.
    """
    from concurrent.futures import ThreadPoolExecutor

    from fsspec.implementations.local import LocalFileSystem

    names = sorted(path.name for path in model.glob("*.safetensors"))
    with ThreadPoolExecutor(max_workers=parallel(len(names))) as pool:
        files = list(pool.map(lambda name: describe(LocalFileSystem(), str(model), name), names))
    lines = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in files)
    return sha256(lines.encode())
