"""A worker that follows nobody: what it serves are its model's own weights, as version 1.

engine warm ──► it decodes as it reads ──► version 1 ──► serving, until it is told to stop

There is no probe to compare with, because no learner computed one: vLLM has read the files, and nothing replaces them.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from schemas.lora import base_sha256
from schemas.weights import WeightVersion

if TYPE_CHECKING:
    from transforms.generation.worker.engine import VllmEngine
    from transforms.generation.worker.state import WorkerState

OWN_VERSION: Final = 1
"""The number under which a worker serves the weights that it came with."""
_TOKENS: Final = (1, 2, 3)
"""Something to continue, in any vocabulary."""

log = structlog.get_logger(__name__)


async def serve_alone(engine: VllmEngine, state: WorkerState, model: str, dtype: str) -> None:
    """Serves what the engine has loaded, until it is cancelled.

    Args:
        engine: prepared.
        state: of the worker.
        model: directory that the engine has read.
        dtype: in which it computes, such as ``bfloat16``.

    Raises:
        StateError: it decodes nonsense.
    """
    await engine.check_decoding(_TOKENS)
    await engine.name_weights(OWN_VERSION)
    await state.apply(own_version(Path(model), dtype), in_flight=False, pause_s=0.0)
    log.info("serving_alone", model=model, dtype=dtype)
    await asyncio.Event().wait()


def own_version(model: Path, dtype: str) -> WeightVersion:
    """What an announcement of a model's own weights would say; in place of a manifest's hash that of its files."""
    return WeightVersion(
        version=OWN_VERSION,
        step=0,
        generation=1,
        manifest_sha256=base_sha256(model),
        dtype=dtype,
        base_model=model.name,
    )
