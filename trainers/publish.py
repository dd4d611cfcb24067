"""The learner's side of the weight store: one directory a version.

    state dict ─┬─ store ──► safetensors files, or deltas of them ─┐
                ├─ ipc ────► a buffer that engines map ────────────┼─► MANIFEST.json (last, atomically)
                └─ nccl ───► a buffer that is sent to engines ─────┘        └─► announced by commit.py

The manifest's facts are ``{"kind": "weights", "version", "step", "dtype", "probe": {"token_ids",
"logprobs"}}``. The probe is what workers compare their engine with after loading: the learner's own
logprobs (temperature 1) of each token but the first, by exactly the weights that are published.
Of an adapter (trainers/lora.py) the kind is ``adapter``, ``base_sha256`` says which weights it belongs to, and the
files are those of peft; the probe is the model's with the adapter on.
The manifest says what the weights are, and nothing of how they travel: it is the same for a delta, and
for every buffer that holds them. Files are not forced to the disk: a version that a power failure tore
is announced anew, under another number, by the learner's next start.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import structlog

from schemas.config import WeightsConfig
from schemas.crash_points import crash_point
from schemas.errors import DiskError, ModelError, RecordError, StateError
from schemas.lora import ADAPTER_CONFIG_NAME, ADAPTER_NAME, KIND
from schemas.manifests import MANIFEST_NAME, FileEntry, Manifest, sha256, verify
from schemas.snapshots import LAYOUT_NAME, SOURCE_NAME, Delta, decode_source
from schemas.weights import WeightVersion, held_versions, version_path
from trainers import shards
from trainers.broadcast import Broadcaster
from trainers.deltas import Deltas
from trainers.disk import disk_errors
from trainers.lora import Adapter
from trainers.snapshots import Snapshots, share

_log = structlog.get_logger(__name__)
_PROBE_TOKENS: Final = 64
_SWITCH_S: Final = 0.0001
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


@contextmanager
def _in_turn() -> Iterator[None]:
    """Threads hand over Python's lock quickly: those that write and hash need it often, and never for long.

    The next gradient is computed by a thread that lets go of it when it is asked to, after 5 ms by default: as long
    as that ran, files were hardly written.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the manifest says of a version, besides its files and the probe."""

    version: int
    """Never used before."""
    step: int
    """Optimizer steps that the weights have seen."""
    dtype: str
    """Of the run."""
    adapter: Adapter | None = None
    """Null for whole weights."""

    def tell(self) -> dict[str, Any]:
        """As the manifest has it."""
        told = {"kind": "weights", "version": self.version, "step": self.step, "dtype": self.dtype}
        return told | {"kind": KIND, "base_sha256": self.adapter.base_sha256} if self.adapter else told


class WeightStore:
    """Writes versions below a root: a local path or an fsspec URL of the configuration."""

    def __init__(self, config: WeightsConfig) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self._config = config
        self._files, self._root = url_to_fs(config.root)
        self._local = isinstance(self._files, LocalFileSystem)
        self._deltas = Deltas(self._files, config.full_every) if config.delta else None
        self._snapshots = Snapshots(config.buffers)
        self._broadcaster = Broadcaster(config) if config.transport == "nccl" else None
        self._last: tuple[int, str] | None = None
        with disk_errors("weight store", config.root):
            self._files.makedirs(self._root, exist_ok=True)

    def newest(self) -> int:
        """The highest version that has a directory, announced or not; 0 if none has."""
        return max(self._versions(), default=0)

    def _versions(self) -> list[int]:
        self._files.invalidate_cache()
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False))
        return sorted(int(name) for name in names if name.isdigit())

    # ------------------------------------------------------------------ write

    def write(
        self, tensors: dict[str, Any], facts: Facts, probe: Callable[[], dict[str, Any]], *, as_files: bool = False
    ) -> str:
        """Writes a version and returns the sha256 of its manifest.

        Args:
            tensors: the weights by their Hugging Face names, where the learner holds them; a GPU has computed them.
            facts: what the weights are.
            probe: computes the probe, before anything is written: beside the threads that write, a probe of 0.06 s
                on a GPU takes as long as they do.
            as_files: whole files, whatever the configuration says.

        Raises:
            DiskError: there is no room or no permission.
            FileExistsError: the version was written before; versions are never used twice.
            ConfigError: the transport does not fit the learner's device.
        """
        directory = version_path(self._root, facts.version)
        what = f"weight version {facts.version}"
        with disk_errors(what, directory):
            self._files.mkdir(directory, create_parents=True)
        try:
            with disk_errors(what, directory), _in_turn():
                told = {**facts.tell(), "probe": probe()}
                carried = self._carry(directory, tensors, facts, as_files=as_files)
                manifest = self._finish(directory, carried, told)
        except (DiskError, OSError):
            self._remove(directory)  # half a version would keep the disk full
            raise
        self._last = (facts.version, sha256(manifest))
        crash_point("weights_written")
        return self._last[1]

    def _finish(self, directory: str, files: tuple[FileEntry, ...], facts: dict[str, Any]) -> bytes:
        crash_point("weights_half_written")
        manifest = Manifest(files=files, facts=facts).encode()
        self._write_manifest(directory, manifest)
        return manifest

    def _carry(self, directory: str, tensors: dict[str, Any], facts: Facts, *, as_files: bool) -> tuple[FileEntry, ...]:
        """Puts the weights where engines get them; returns what the manifest says of them."""
        if facts.adapter:
            return self._carry_adapter(directory, tensors, facts.adapter)
        if self._config.transport != "store" and not as_files:
            return self._carry_in_memory(directory, tensors, facts.version)
        if self._deltas is not None:
            return self._deltas.write(directory, shards.divide(tensors), None if as_files else self._last)
        return shards.write(self._files, directory, shards.divide(tensors), local=self._local)

    def _carry_adapter(self, directory: str, tensors: dict[str, Any], adapter: Adapter) -> tuple[FileEntry, ...]:
        self._files.pipe_file(f"{directory}/{ADAPTER_CONFIG_NAME}", adapter.config)
        described = FileEntry(name=ADAPTER_CONFIG_NAME, size=len(adapter.config), sha256=sha256(adapter.config))
        shard = shards.Shard(ADAPTER_NAME, dict(sorted(tensors.items())))
        return (described, *shards.write(self._files, directory, [shard], local=self._local))

    def _carry_in_memory(self, directory: str, tensors: dict[str, Any], version: int) -> tuple[FileEntry, ...]:
        snapshot = self._snapshots.take(tensors, version)
        source = self._broadcaster.offer(snapshot) if self._broadcaster else share(snapshot)
        layout = snapshot.layout.model_dump_json().encode()
        self._files.pipe_file(f"{directory}/{SOURCE_NAME}", source.model_dump_json().encode())
        self._files.pipe_file(f"{directory}/{LAYOUT_NAME}", layout)
        return (FileEntry(name=LAYOUT_NAME, size=len(layout), sha256=sha256(layout)),)

    def _write_manifest(self, directory: str, manifest: bytes) -> None:
        path = f"{directory}/{MANIFEST_NAME}"
        if not self._local:
            self._files.pipe_file(path, manifest)  # object stores create objects whole
            return
        temporary = Path(f"{directory}/.{MANIFEST_NAME}")
        temporary.write_bytes(manifest)
        temporary.rename(path)

    # ------------------------------------------------------------------ fault

    def fault(self, announced: WeightVersion) -> str | None:
        """Why nobody can load an announced version; None if whatever it takes is as it was announced."""
        try:
            fault = self._fault_of(announced.version, announced.manifest_sha256)
        except (StateError, RecordError, OSError) as error:
            return str(error)
        return fault or self.undelivered(announced, even_unasked=True)

    def _fault_of(self, version: int, manifest_sha256: str) -> str | None:
        directory = version_path(self._root, version)
        manifest = Manifest.decode(self._files.cat_file(f"{directory}/{MANIFEST_NAME}"), manifest_sha256)
        delta = self._delta_of(version)
        verify(self._files, directory, manifest.model_copy(update={"files": delta.files}) if delta else manifest)
        if delta:
            return self._fault_of(delta.base, delta.base_manifest_sha256)
        if manifest.files[0].name != LAYOUT_NAME:
            return None
        decode_source(self._files.cat_file(f"{directory}/{SOURCE_NAME}"))
        snapshot = self._snapshots.of(version)
        return snapshot.fault() if snapshot else "its buffer was written over"

    def undelivered(self, announced: WeightVersion, *, even_unasked: bool = False) -> str | None:
        """Why engines could not be sent an announced version; None if they were, or nobody has asked."""
        return self._broadcaster.fault(announced.version, even_unasked=even_unasked) if self._broadcaster else None

    # ------------------------------------------------------------------ prune

    def prune(self, announced: int) -> None:
        """Removes all but the newest whole versions, those that readers hold, and what their deltas are based on.

        Never the one announced last. Evaluations hold the best version, and the one that they are about to ask.
        """
        versions = self._versions()
        whole = [version for version in versions if self._is_whole(version)]
        kept = {version for version in versions if version >= announced} | set(whole[-self._config.keep :])
        kept |= set(versions) & set(chain.from_iterable(held_versions(self._files, self._root).values()))
        for version in sorted(kept, reverse=True):
            kept |= self._bases_of(version)
        for version in versions:
            if version not in kept:
                self._remove(version_path(self._root, version))

    def _is_whole(self, version: int) -> bool:
        """Whether it has a manifest, which is written last."""
        return bool(self._files.exists(f"{version_path(self._root, version)}/{MANIFEST_NAME}"))

    def _bases_of(self, version: int) -> set[int]:
        """The versions that have to be there to rebuild one."""
        bases: set[int] = set()
        while delta := self._delta_of(version):
            if delta.base >= version:
                break
            bases.add(version := delta.base)
        return bases

    def _delta_of(self, version: int) -> Delta | None:
        try:
            source = decode_source(self._files.cat_file(f"{version_path(self._root, version)}/{SOURCE_NAME}"))
        except (FileNotFoundError, RecordError):
            return None
        return source if isinstance(source, Delta) else None

    def _remove(self, directory: str) -> None:
        try:
            if self._files.exists(f"{directory}/{MANIFEST_NAME}"):
                self._files.rm(f"{directory}/{MANIFEST_NAME}")  # without it no reader takes it for a version
            self._files.rm(directory, recursive=True)
        except OSError as error:
            _log.warning("old weights not removed", directory=directory, error=str(error))

    def close(self) -> None:
        """Ends what sends weights to engines."""
        if self._broadcaster:
            self._broadcaster.close()
