"""Bytes: what weights, gradients, optimizer, keys and values, versions and checkpoints take.

Each function gives the sum and the formula with its numbers, as the plan shows them. What is not counted: activations
and logits, which depend on ``learner.micro_batch_tokens`` and the kernels, and the libraries themselves.
"""

from typing import Final

from pipelines.model_facts import ModelFacts
from schemas.config import RunConfig
from schemas.lora import adapter_shapes

BYTES_OF: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_FULL: Final = 4
"""Bytes of a number in float32: AdamW's moments, and the weights that it updates."""
_MOMENTS: Final = 2


def gib(count: float) -> str:
    """Example: ``1.50 GiB``; below a hundredth of that in MiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 100 else f"{count / 2**20:,.2f} MiB"


def trained_numbers(config: RunConfig, model: ModelFacts) -> int:
    """Numbers that the learner trains: those of the model, or of the adapter.

    Raises:
        ModelError: the model has no layers for the adapter.
    """
    lora = config.learner.lora
    if not lora.trains_adapter:
        return model.parameters
    return sum(rows * columns for rows, columns in adapter_shapes(lora, model.shapes).values())


def learner_bytes(config: RunConfig, model: ModelFacts, dtype: str, ranks: int) -> tuple[int, str]:
    """Weights, gradients and optimizer of one rank.

    In bfloat16 the optimizer keeps weights of its own in float32, and takes gradients in float32. ZeRO divides over
    ranks the optimizer from stage 1 on, gradients from stage 2 on, weights at stage 3. Source: Rajbhandari et al.,
    ZeRO, 2020, arXiv:1910.02054.
    """
    of, stage = BYTES_OF[dtype], config.learner.zero_stage
    whole, trained = model.parameters, trained_numbers(config, model)
    masters = _FULL if of < _FULL else 0
    weights = whole * of // (ranks if stage == 3 else 1)
    gradients = trained * (of + masters) // (ranks if stage >= 2 else 1)
    optimizer = trained * (masters + _MOMENTS * _FULL) // (ranks if stage >= 1 else 1)
    total = weights + gradients + optimizer
    formula = (
        f"{whole:,} parameters × {of} bytes = {gib(weights)} of weights + {trained:,} trained × {of + masters} = "
        f"{gib(gradients)} of gradients + × {masters + _MOMENTS * _FULL} = {gib(optimizer)} of optimizer = {gib(total)}"
        f" a rank ({dtype}, ZeRO {stage}, ranks {ranks}), without activations"
    )
    return total, formula


def kv_token_bytes(model: ModelFacts, dtype: str) -> int | None:
    """Keys and values of one token; null where the model's configuration does not say."""
    return None if model.kv_numbers_per_token is None else model.kv_numbers_per_token * BYTES_OF[dtype]


def version_bytes(config: RunConfig, model: ModelFacts, dtype: str) -> int:
    """One whole weight version in the store."""
    return trained_numbers(config, model) * BYTES_OF[dtype]


def checkpoint_bytes(config: RunConfig, model: ModelFacts) -> int:
    """One checkpoint: weights and both moments in float32 (see ``trainers/full_state.py``)."""
    return trained_numbers(config, model) * _FULL * (1 + _MOMENTS)
