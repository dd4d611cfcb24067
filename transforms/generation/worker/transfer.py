"""The transport ``store`` inside vLLM: safetensors files, memory-mapped, into the running model.

    follower ──open_weights(files)──► WorkerExtension        the engine still generates
             ──update_weights()─────► StoreTransfer ──► model    paused

Files are opened before the pause: a file that vanished is noticed while the old weights are whole.
vLLM names this module's :class:`WorkerExtension` in ``--worker-extension-cls``, so every process
that holds a model imports it, and with that registers the backend.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from transforms.generation.worker.executor import wait_patiently
from transforms.generation.worker.lifeline import hold
from transforms.generation.worker.names import BACKEND

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_HEAD: Final = "lm_head.weight"
_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass
class StoreInit(WeightTransferInitInfo):  # type: ignore[misc]
    """The backend needs nothing to start."""


@dataclass
class StoreUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Loads what :meth:`WorkerExtension.open_weights` opened."""


class StoreTransfer(WeightTransferEngine[StoreInit, StoreUpdate]):  # type: ignore[misc]
    """One per vLLM worker process."""

    init_info_cls = StoreInit
    update_info_cls = StoreUpdate
    opened: tuple[ExitStack, list[Any]] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Called by vLLM once the model is there."""
        super().__init__(*args, **options)
        hold()
        if self.device.type == "cpu":
            wait_patiently()

    def init_transfer_engine(self, init_info: StoreInit) -> None:
        """Nothing to connect."""

    def open(self, files: list[str]) -> None:
        """Maps the files of the next version into memory; those of an abandoned one are let go."""
        self.shutdown()
        with ExitStack() as stack:
            tensors = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
            self.opened = (stack.pop_all(), tensors)

    def start_weight_update(self) -> None:
        """Layers expect whole weights from here on."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: StoreUpdate) -> None:  # noqa: ARG002 - vLLM's signature
        """Copies every tensor into the model."""
        if self.opened is None:
            raise RuntimeError("update_weights without open_weights")
        has_head = hasattr(self.model, "lm_head")
        self.model.load_weights(named_tensors(self.opened[1], add_tied_head=has_head))

    def finish_weight_update(self) -> None:
        """Packs the layers for this processor."""
        finalize_layerwise_reload(self.model, self.model_config)
        self.shutdown()

    def shutdown(self) -> None:
        """Lets go of the opened files."""
        if self.opened is not None:
            self.opened[0].close()
            self.opened = None


def named_tensors(files: list[Any], *, add_tied_head: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of opened safetensors files by name.

    Args:
        files: handles of ``safe_open``.
        add_tied_head: yield the input embedding as ``lm_head.weight`` too if the files have no head.
            Without it vLLM keeps the old head, silently: it packed a copy when it started.
    """
    embedding: torch.Tensor | None = None
    has_head = False
    for tensors in files:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            tensor = tensors.get_tensor(name)
            has_head = has_head or name == _HEAD
            embedding = tensor if name.endswith(_EMBEDDINGS) else embedding
            yield name, tensor
    if add_tied_head and not has_head and embedding is not None:
        yield _HEAD, embedding


class WorkerExtension:
    """Mixed into vLLM's worker class: what ``collective_rpc`` may call besides vLLM's own methods."""

    weight_transfer_engine: StoreTransfer

    def open_weights(self, files: list[str]) -> None:
        """Maps the files of a verified version, before generation is paused for it."""
        self.weight_transfer_engine.open(files)


WeightTransferEngineFactory.register_engine(BACKEND, StoreTransfer)
