"""Global versions and the state of the server's optimizer, in the federation's store.

    {store}/weights/{version}  written as a learner writes its own, so that workers and evaluators can follow
    {store}/server/{version}   state.safetensors, MANIFEST.json

Global versions are float32: what sites learn in a round is small beside the weights, and would be lost in 16 bits.
A probe, without which no worker takes a version, is computed where the model's directory has what it takes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from schemas.config import WeightsConfig
from schemas.errors import ModelError, StateError
from schemas.federating import FederationConfig
from schemas.federation import server_path, weights_root
from schemas.lora import ADAPTER_CONFIG_NAME, LoraConfig, base_sha256
from schemas.manifests import MANIFEST_NAME, FileEntry, Manifest, sha256, verify
from schemas.weights import WeightVersion, version_path
from trainers.disk import disk_errors
from trainers.federation.layout import Layout, Row
from trainers.lora import Adapter
from trainers.publish import Facts, WeightStore, probe_tokens

DTYPE: Final = "float32"
_STATE_NAME: Final = "state.safetensors"
_log = structlog.get_logger(__name__)


class Versions:
    """Reads and writes both."""

    def __init__(self, config: FederationConfig) -> None:
        from fsspec.core import url_to_fs

        self._config = config
        self._files, self._root = url_to_fs(config.store)
        self._store = WeightStore(WeightsConfig(root=weights_root(config.store), keep=config.keep))
        self._model = Path(config.base or config.model)
        self._adapter = _adapter_of(config)
        self._prober: Prober | None = None

    def newest(self) -> int:
        """The highest version that has a directory, announced or not; 0 if none has."""
        return self._store.newest()

    # ------------------------------------------------------------------ read

    def initial(self) -> tuple[Layout, Row]:
        """What the first version is made of.

        Raises:
            ModelError: the directory has no tensors.
        """
        directory = Path(self._config.model)
        paths = sorted(directory.glob("*.safetensors")) if self._config.model else []
        if not paths:
            raise ModelError(
                f"model = {self._config.model!r} has no *.safetensors, and the federation has no version yet; give the "
                "directory of the model, or of the adapter, that it begins with"
            )
        return _flat(_tensors(path.read_bytes()) for path in paths)

    def read(self, announced: WeightVersion) -> tuple[Layout, Row]:
        """An announced version, verified.

        Raises:
            StateError: it is missing, or is not what was announced.
        """
        directory = version_path(weights_root(self._root), announced.version)
        manifest = self._verified(directory, announced.manifest_sha256)
        names = [entry.name for entry in manifest.files if entry.name.endswith(".safetensors")]
        return _flat(_tensors(self._files.cat_file(f"{directory}/{name}")) for name in names)

    def _verified(self, directory: str, manifest_sha256: str) -> Manifest:
        try:
            manifest = Manifest.decode(self._files.cat_file(f"{directory}/{MANIFEST_NAME}"), manifest_sha256)
        except FileNotFoundError as error:
            raise StateError(f"{directory} is missing or has no manifest; restore the federation's store") from error
        verify(self._files, directory, manifest)
        return manifest

    # ------------------------------------------------------------------ write

    def write(self, version: int, step: int, generation: int, layout: Layout, row: Row) -> WeightVersion:
        """Writes a version; returns what announces it.

        Args:
            version: never used before.
            step: merges that it has seen.
            generation: of the coordinator.
            layout: of the row.
            row: its numbers.

        Raises:
            DiskError: there is no room or no permission.
        """
        import torch

        tensors = {name: torch.from_numpy(tensor) for name, tensor in layout.unflatten(row).items()}
        prober = self._prober = self._prober or Prober(self._model, self._adapter)
        facts = Facts(version, step, DTYPE, self._adapter)
        digest = self._store.write(tensors, facts, lambda: prober(tensors), as_files=True)
        return WeightVersion(version=version, step=step, generation=generation, manifest_sha256=digest, dtype=DTYPE,
                             base_model=self._model.name)  # fmt: skip

    def prune(self, announced: int) -> None:
        """Removes versions beyond ``keep``, and states of the server that belong to versions which are gone."""
        self._store.prune(announced)
        self._files.invalidate_cache()
        root = f"{self._root.rstrip('/')}/server"
        for path in self._files.ls(root, detail=False) if self._files.exists(root) else []:
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name.isdigit() and int(name) < announced:
                self._files.rm(path, recursive=True)

    # ------------------------------------------------------------------ server

    def write_state(self, version: int, state: Mapping[str, Row]) -> str | None:
        """Writes the server optimizer's state; returns its manifest's sha256, null if there is none."""
        from safetensors.numpy import save

        if not state:
            return None
        directory, value = server_path(self._root, version), save(dict(state))
        entry = FileEntry(name=_STATE_NAME, size=len(value), sha256=sha256(value))
        manifest = Manifest(files=(entry,), facts={"kind": "server", "version": version}).encode()
        with disk_errors("state of the server's optimizer", directory):
            self._files.makedirs(directory, exist_ok=True)
            self._files.pipe_file(f"{directory}/{_STATE_NAME}", value)
            self._files.pipe_file(f"{directory}/{MANIFEST_NAME}", manifest)
        return sha256(manifest)

    def read_state(self, version: int, manifest_sha256: str) -> dict[str, Row]:
        """The state that belongs to a version, verified.

        Raises:
            StateError: it is missing, or is not what was announced.
        """
        from safetensors.numpy import load

        directory = server_path(self._root, version)
        self._verified(directory, manifest_sha256)
        state: dict[str, Row] = load(self._files.cat_file(f"{directory}/{_STATE_NAME}"))
        return state


def _tensors(value: bytes) -> dict[str, Any]:
    from safetensors.torch import load

    return {name: tensor.float().numpy() for name, tensor in load(value).items()}


def _flat(parts: Iterable[dict[str, Any]]) -> tuple[Layout, Row]:
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    layout = Layout.of(tensors)
    return layout, layout.flatten(tensors)


def _adapter_of(config: FederationConfig) -> Adapter | None:
    """Null where whole weights travel."""
    told = Path(config.model) / ADAPTER_CONFIG_NAME
    if not told.exists():
        return None
    if not config.base:
        raise ModelError(
            f"model = {config.model!r} is an adapter, and base is empty; give the directory of the model it belongs to"
        )
    return Adapter(told.read_bytes(), base_sha256(Path(config.base)))


class Prober:
    """Computes what workers compare their engine with, if there is a configuration and a tokenizer to do it by."""

    def __init__(self, model: Path, adapter: Adapter | None) -> None:
        """Loads the model.

        Args:
            model: a Hugging Face directory, or one with safetensors alone.
            adapter: to it, which is published; null where whole weights are.
        """
        self._token_ids: list[int] = []
        if not (model / "config.json").exists():
            _log.info("versions have no probe, and no worker takes them: no config.json", model=str(model))
            return
        from transformers import AutoModelForCausalLM

        from trainers.loading import LOADING
        from trainers.lora import adapter_of, add_adapter

        self._token_ids = probe_tokens(str(model))
        with LOADING:
            self._causal = AutoModelForCausalLM.from_pretrained(model, local_files_only=True).float().eval()
        self._places = dict(self._causal.state_dict())
        if adapter:
            add_adapter(self._causal, model, _lora(adapter), seed=0)
            self._places = adapter_of(dict(self._causal.named_parameters()))

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The ``probe`` of a manifest's facts; empty without a model."""
        from trainers.policy import logprobs_of

        if not self._token_ids:
            return {}
        for name, tensor in tensors.items():
            self._places[name].copy_(tensor)
        return {"token_ids": self._token_ids, "logprobs": logprobs_of(self._causal, self._token_ids)}


def _lora(adapter: Adapter) -> LoraConfig:
    told = json.loads(adapter.config)
    return LoraConfig(rank=told["r"], alpha=told["lora_alpha"], target_modules=tuple(told["target_modules"]))
