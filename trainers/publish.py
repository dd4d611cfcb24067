"""The learner's side of the weight store: one directory a version.

    state dict ──► model.safetensors ──► sha256 ──► MANIFEST.json (last, atomically) ──► announced by commit.py

The manifest's facts are ``{"kind": "weights", "version", "step", "dtype", "probe": {"token_ids",
"logprobs"}}``. The probe is what workers compare their engine with after loading: the learner's own
logprobs (temperature 1) of each token but the first, by exactly the weights that are published.
Files are not forced to the disk: a version that a power failure tore is announced anew, under another
number, by the learner's next start.
"""

from pathlib import Path
from typing import Any, Final

import structlog

from schemas.config import WeightsConfig
from schemas.crash_points import crash_point
from schemas.errors import DiskError, ModelError, StateError
from schemas.manifests import MANIFEST_NAME, Manifest, describe, sha256, verify
from schemas.weights import WeightVersion, version_path
from trainers.disk import disk_errors

_log = structlog.get_logger(__name__)
MODEL_NAME: Final = "model.safetensors"
_PROBE_TOKENS: Final = 64
_PROBE_TEXT: Final = (
    "A baker sells 12 rolls in the morning and 9 in the afternoon. How many rolls does she sell in a day? "
    "Explain how you found the number, then write a short letter in which she thanks her customers."
)


def probe_tokens(model: str) -> list[int]:
    """Token ids of the probe: a passage as a user's message, in the model's own template if it has one.

    Random tokens will not do: on what it has never seen a model's logits saturate, and two right
    16-bit computations differ by 0.2 in every logprob; on this text they differ by 0.04 in the mean.

    Raises:
        ModelError: the model directory has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model.path = {model!r}: its tokenizer cannot be read: {error}") from error
    text = _PROBE_TEXT
    if tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template)
    return token_ids[:_PROBE_TOKENS]


class WeightStore:
    """Writes versions below a root: a local path or an fsspec URL of the configuration."""

    def __init__(self, config: WeightsConfig) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self._keep = config.keep
        self._files, self._root = url_to_fs(config.root)
        self._local = isinstance(self._files, LocalFileSystem)
        with disk_errors("weight store", config.root):
            self._files.makedirs(self._root, exist_ok=True)

    def newest(self) -> int:
        """The highest version that has a directory, announced or not; 0 if none has."""
        return max(self._versions(), default=0)

    def _versions(self) -> list[int]:
        self._files.invalidate_cache()
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False))
        return sorted(int(name) for name in names if name.isdigit())

    def write(self, tensors: dict[str, Any], *, version: int, step: int, dtype: str, probe: dict[str, Any]) -> str:
        """Writes a version and returns the sha256 of its manifest.

        Raises:
            DiskError: there is no room or no permission.
            FileExistsError: the version was written before; versions are never used twice.
        """
        directory = version_path(self._root, version)
        facts = {"kind": "weights", "version": version, "step": step, "dtype": dtype, "probe": probe}
        what = f"weight version {version}"
        with disk_errors(what, directory):
            self._files.mkdir(directory, create_parents=True)
        try:
            with disk_errors(what, directory):
                manifest = self._write(directory, tensors, facts)
        except DiskError:
            self._remove(directory)  # half a version would keep the disk full
            raise
        crash_point("weights_written")
        return sha256(manifest)

    def _write(self, directory: str, tensors: dict[str, Any], facts: dict[str, Any]) -> bytes:
        self._write_tensors(f"{directory}/{MODEL_NAME}", tensors)
        crash_point("weights_half_written")
        manifest = Manifest(files=(describe(self._files, directory, MODEL_NAME),), facts=facts).encode()
        self._write_manifest(directory, manifest)
        return manifest

    def _write_tensors(self, path: str, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save, save_file

        if self._local:
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            self._files.pipe_file(path, save(tensors, metadata={"format": "pt"}))

    def _write_manifest(self, directory: str, manifest: bytes) -> None:
        path = f"{directory}/{MANIFEST_NAME}"
        if not self._local:
            self._files.pipe_file(path, manifest)  # object stores create objects whole
            return
        temporary = Path(f"{directory}/.{MANIFEST_NAME}")
        temporary.write_bytes(manifest)
        temporary.rename(path)

    def fault(self, announced: WeightVersion) -> str | None:
        """What is wrong with the files of an announced version; None if they are what was announced."""
        directory = version_path(self._root, announced.version)
        try:
            value = self._files.cat_file(f"{directory}/{MANIFEST_NAME}")
            verify(self._files, directory, Manifest.decode(value, announced.manifest_sha256))
        except (StateError, OSError) as error:
            return str(error)
        return None

    def prune(self, announced: int) -> None:
        """Removes all but the newest versions; never the one that was announced last."""
        for version in self._versions()[: -self._keep]:
            if version < announced:
                self._remove(version_path(self._root, version))

    def _remove(self, directory: str) -> None:
        try:
            if self._files.exists(f"{directory}/{MANIFEST_NAME}"):
                self._files.rm(f"{directory}/{MANIFEST_NAME}")  # without it no reader takes it for a version
            self._files.rm(directory, recursive=True)
        except OSError as error:
            _log.warning("old weights not removed", directory=directory, error=str(error))
