"""What vLLM loads new weights from: files of the store, or a staged copy of the learner's buffer.

    follower ──open_weights(files)──────► WorkerExtension ──► mapped files ─┐   the engine still generates; on a
                                                 │               (Staging) ─┤   GPU files are staged too
             ──begin_snapshot(texts)────► WorkerExtension ──► Staging ──────┤
             ──replace_weights()────────► Transfer ◄────────────────────────┘──► model    paused

Files are opened, and buffers copied and checked, before the pause: what vanished is noticed while the old
weights are whole. vLLM names this module's :class:`WorkerExtension` in ``--worker-extension-cls``, so every
process that holds a model imports it, and with that registers the backend.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from transforms.generation.worker.copies import Copies
from transforms.generation.worker.executor import wait_patiently
from transforms.generation.worker.lifeline import hold
from transforms.generation.worker.names import BACKEND
from transforms.generation.worker.staging import Staging
from transforms.generation.worker.tiles import ask_for_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

_NO_TIME_S: Final = 0.05
"""To ask for an outcome once more takes a step of the engine: with many requests in flight as long as this."""
_HEAD: Final = "lm_head.weight"
_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass
class TransferInit(WeightTransferInitInfo):  # type: ignore[misc]
    """The backend needs nothing to start."""


@dataclass
class TransferUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Loads what :class:`WorkerExtension` opened or staged."""


class Transfer(WeightTransferEngine[TransferInit, TransferUpdate]):  # type: ignore[misc]
    """One per vLLM worker process."""

    init_info_cls = TransferInit
    update_info_cls = TransferUpdate
    opened: tuple[ExitStack, list[Any]] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Called by vLLM once the model is there."""
        super().__init__(*args, **options)
        self.staging = Staging(self.device)
        self._in_place = self.device.type == "cuda" and computes_in_place(self.model)
        self._copies = Copies()
        hold()
        if self.device.type == "cpu":
            ask_for_tiles()
            wait_patiently()

    def init_transfer_engine(self, init_info: TransferInit) -> None:
        """Nothing to connect."""

    def open(self, files: list[str]) -> None:
        """Maps the files of the next version into memory; those of an abandoned one are let go.

        What is overwritten in place is copied to the GPU beside the generation, if there is room for it.
        """
        self.shutdown()
        with ExitStack() as stack:
            tensors = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
            self.opened = (stack.pop_all(), tensors)
        if self._in_place:
            self.staging.begin_files(files)

    def stage(self, source: str, layout: str) -> None:
        """Begins to copy a buffer; whatever was opened is let go."""
        self.shutdown()
        self.staging.begin(source, layout)

    def start_weight_update(self) -> None:
        """Layers expect whole weights from here on."""
        if not self._in_place:
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: TransferUpdate) -> None:  # noqa: ARG002 - vLLM's signature
        """Copies every tensor into the model."""
        if self.opened and not self.staging.is_ready:
            self._load(_of_files(self.opened[1]))
        elif self._in_place:
            self._copies.load(self.staging.form, lambda: self._load(self.staging.tensors().items()))
        else:
            self._load(self.staging.tensors().items())

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        has_head = hasattr(self.model, "lm_head")
        self.model.load_weights(with_head(tensors) if has_head else tensors)

    def finish_weight_update(self) -> None:
        """Packs the layers for this processor."""
        if not self._in_place:
            finalize_layerwise_reload(self.model, self.model_config)
        self.shutdown()

    def shutdown(self) -> None:
        """Lets go of opened files and of the staged version."""
        self.staging.close()
        if self.opened is not None:
            self.opened[0].close()
            self.opened = None


def computes_in_place(model: torch.nn.Module) -> bool:
    """Whether a GPU computes with the very tensors that a checkpoint's are copied into.

    Then they are simply overwritten. vLLM's layerwise reload builds every layer anew and converts it, which a
    model that is quantised, has experts or latent attention needs, and which costs a plain one 0.25 s.
    """
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    plain = (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    return all(
        type(getattr(module, "quant_method", None)) in plain
        and (type(module) is Attention or not hasattr(module, "process_weights_after_loading"))
        for module in model.modules()
    )


def _of_files(files: list[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of handles of ``safe_open``, by name."""
    for tensors in files:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            yield name, tensors.get_tensor(name)


def with_head(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, and the input embedding as ``lm_head.weight`` too if there is no head among them.

    Without it vLLM keeps the old head, silently: it packed a copy when it started.
    """
    embedding: torch.Tensor | None = None
    has_head = False
    for name, tensor in tensors:
        has_head = has_head or name == _HEAD
        embedding = tensor if name.endswith(_EMBEDDINGS) else embedding
        yield name, tensor
    if not has_head and embedding is not None:
        yield _HEAD, embedding


class WorkerExtension:
    """Mixed into vLLM's worker class: what ``collective_rpc`` may call besides vLLM's own methods."""

    weight_transfer_engine: Transfer
    start_weight_update: Callable[[], None]
    update_weights: Callable[[dict[str, Any]], None]
    finish_weight_update: Callable[[], None]

    def open_weights(self, files: list[str]) -> str | None:
        """Maps the files of a verified version and begins to copy them, before generation is paused for it."""
        self.weight_transfer_engine.open(files)
        return self.weight_transfer_engine.staging.outcome(_NO_TIME_S)

    def begin_snapshot(self, source: str, layout: str) -> str | None:
        """Begins to copy a learner's buffer; generation goes on, or waits for a copy that is made in no time."""
        self.weight_transfer_engine.stage(source, layout)
        return self.weight_transfer_engine.staging.outcome(_NO_TIME_S)

    def replace_weights(self) -> None:
        """Loads what was opened: vLLM's three steps in one call, because each one costs a round trip."""
        self.start_weight_update()
        self.update_weights({})
        self.finish_weight_update()

    def poll_snapshot(self) -> str | None:
        """See :meth:`transforms.generation.worker.staging.Staging.outcome`."""
        return self.weight_transfer_engine.staging.outcome()


WeightTransferEngineFactory.register_engine(BACKEND, Transfer)
