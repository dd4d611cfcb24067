"""What a version must be before the engine is even paused for it.

    manifest's hash ─► facts ─► size and sha256 of every file ─► names, shapes, dtypes ─► finite numbers

Of weights that travel through memory this sees ``layout.json``; their bytes are checked where they
arrive: see ``staging.py``. A run that trains an adapter takes adapters only, to the weights of the worker's own model.
A refusal is a ``RecordError`` whose reason is the label of a counter: ``bad_manifest``,
``bad_files``, ``bad_tensors``, ``bad_source``, ``nonfinite`` or ``bad_probe``. Everything here reads
memory-mapped files and is called in a thread.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import ModelError, RecordError, StateError
from schemas.lora import ADAPTER_CONFIG_NAME, ADAPTER_NAME, KIND, LoraConfig, adapter_shapes, base_sha256
from schemas.manifests import MANIFEST_NAME, Manifest, parallel, verify
from schemas.records import first_fault
from schemas.snapshots import LAYOUT_NAME, SOURCE_NAME, decode_layout, decode_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from schemas.weights import WeightVersion

Shapes = dict[str, tuple[int, ...]]
"""The shape of every tensor by its Hugging Face name."""
Dtypes = dict[str, str]
"""The dtype of every tensor, as safetensors writes it."""

_WHOLE: Final = LoraConfig()
_HEAD: Final = "lm_head.weight"
_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""From the names of announcements to those of safetensors."""
_SLICE_NUMBERS: Final = 8 << 20
"""That one thread looks at in one go."""
_MAX_THREADS: Final = 32
_DERIVED: Final = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Old checkpoints hold these; they follow from config.json and no learner trains them."""


class Probe(BaseModel):
    """Tokens and what the learner says of them: ``{"token_ids": [1, 5, 7], "logprobs": [-2.1, -0.4]}``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    token_ids: tuple[int, ...] = Field(min_length=2)
    """Length P."""
    logprobs: tuple[float, ...]
    """Length P - 1: natural logarithm of the probability of token i + 1 given tokens 0 to i, at temperature 1."""

    def difference(self, logprobs: list[float]) -> float:
        """Mean absolute difference to the engine's logprobs, of length P - 1; infinite if one is not a number."""
        if len(logprobs) != len(self.logprobs):
            return math.inf
        difference = sum(abs(mine - theirs) for mine, theirs in zip(self.logprobs, logprobs, strict=True))
        return difference / len(logprobs) if math.isfinite(difference) else math.inf


@dataclass(frozen=True, slots=True)
class Verified:
    """A version that may be loaded."""

    announced: WeightVersion
    files: tuple[str, ...]
    """Local safetensors files, absolute; none if the weights come through memory."""
    probe: Probe
    snapshot: tuple[str, str] | None = None
    """Texts of ``SOURCE.json`` and ``layout.json``: the bytes are checked when they have come."""
    adapter: Path | None = None
    """The local directory of an adapter; null for whole weights."""


@dataclass(frozen=True, slots=True)
class AdapterExpectation:
    """What makes a version an adapter to this worker's model."""

    lora: LoraConfig
    base_sha256: str
    """Of the model's own weights."""

    def check(self, announced: WeightVersion, directory: Path, manifest: Manifest) -> None:
        """Compares files and configuration, because vLLM does whatever stands there.

        Raises:
            RecordError: ``bad_files`` or ``bad_tensors``.
        """
        names = {entry.name for entry in manifest.files}
        if names != {ADAPTER_NAME, ADAPTER_CONFIG_NAME}:
            raise RecordError("bad_files", f"{_few(sorted(names))}, expected {ADAPTER_NAME} and {ADAPTER_CONFIG_NAME}")
        try:
            given = (directory / ADAPTER_CONFIG_NAME).read_bytes()
        except OSError as error:
            raise RecordError("bad_files", str(error)) from error
        expected = self.lora.encode(announced.base_model)
        if given != expected:
            raise RecordError("bad_tensors", f"{ADAPTER_CONFIG_NAME} is {given[:400]!r}, by learner.lora {expected!r}")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the model directory says about every version."""

    shapes: Shapes
    vocab_size: int
    max_tokens: int
    """Longest probe that the engine takes, in tokens."""
    adapter: AdapterExpectation | None = None
    """Null where versions are whole weights."""

    def check(self, announced: WeightVersion, directory: Path, manifest: Manifest) -> Verified:
        """Verifies a version that lies in a local directory.

        Raises:
            RecordError: with the reason; nothing of it may be loaded.
        """
        probe = self._check_facts(announced, manifest)
        _check_files(directory, manifest)
        if not self.adapter and any(entry.name == LAYOUT_NAME for entry in manifest.files):
            return Verified(announced, (), probe, self._check_layout(announced, directory))
        if self.adapter:
            self.adapter.check(announced, directory, manifest)
        files = tuple(
            str((directory / entry.name).resolve()) for entry in manifest.files if entry.name.endswith(".safetensors")
        )
        shapes, dtypes = _read_tensors(files)
        _check_shapes(self.shapes, shapes)
        _check_dtypes(announced.dtype, dtypes)
        _check_finite(files)
        return Verified(announced, files, probe, adapter=directory.resolve() if self.adapter else None)

    def _check_layout(self, announced: WeightVersion, directory: Path) -> tuple[str, str]:
        source, text = _read_texts(directory)
        decode_source(source)
        layout = decode_layout(text)
        _check_shapes(self.shapes, {place.name: place.shape for place in layout.tensors})
        _check_dtypes(announced.dtype, {place.name: _DTYPES[place.dtype] for place in layout.tensors})
        return source, text

    def _check_facts(self, announced: WeightVersion, manifest: Manifest) -> Probe:
        expected = {"kind": "weights", "version": announced.version, "dtype": announced.dtype}
        if self.adapter:
            expected |= {"kind": KIND, "base_sha256": self.adapter.base_sha256}
        given = {name: manifest.facts.get(name) for name in expected}
        if given != expected:
            raise RecordError("bad_manifest", f"facts {given}, expected {expected}"[:300])
        try:
            probe = Probe.model_validate(manifest.facts.get("probe"))
        except ValidationError as error:
            raise RecordError("bad_probe", first_fault(error)) from error
        tokens = len(probe.token_ids)
        if len(probe.logprobs) != tokens - 1 or tokens > self.max_tokens:
            raise RecordError(
                "bad_probe", f"{tokens} tokens, {len(probe.logprobs)} logprobs, at most {self.max_tokens} fit"
            )
        if not all(0 <= token < self.vocab_size for token in probe.token_ids):
            raise RecordError("bad_probe", f"a token id outside the vocabulary of {self.vocab_size}")
        return probe


def read_expectation(model: Path, max_model_len: int, lora: LoraConfig = _WHOLE) -> Expectation:
    """Reads what a model directory's configuration and safetensors promise about every version.

    Args:
        model: the directory.
        max_model_len: of the engine, in tokens.
        lora: whether versions are adapters; then all of the model is read once, for its hash.

    Raises:
        ModelError: the directory is missing or incomplete, or has no layers for the adapter.
    """
    try:
        config = json.loads((model / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {str(model)!r}: config.json cannot be read ({error}); set model.path to a Hugging Face directory"
        ) from error
    files = tuple(str(path) for path in sorted(model.glob("*.safetensors")))
    if not files:
        raise ModelError(f"model {str(model)!r}: holds no *.safetensors; save it with save_pretrained()")
    shapes = _expected_shapes(files, model)
    text = {**config, **config.get("text_config", {})}
    if text.get("tie_word_embeddings", False):
        shapes.pop(_HEAD, None)
    vocab_size = int(text.get("vocab_size", 0))
    if not lora.trains_adapter:
        return Expectation(shapes, vocab_size, max_model_len - 1)
    adapter = AdapterExpectation(lora, base_sha256(model))
    return Expectation(adapter_shapes(lora, shapes), vocab_size, max_model_len - 1, adapter)


def _expected_shapes(files: tuple[str, ...], model: Path) -> Shapes:
    try:
        shapes, _ = _read_tensors(files)
    except RecordError as error:
        raise ModelError(f"model {str(model)!r}: {error.detail}; download or convert it again") from error
    return {name: shape for name, shape in shapes.items() if not name.endswith(_DERIVED)}


def _check_files(directory: Path, manifest: Manifest) -> None:
    from fsspec.implementations.local import LocalFileSystem

    _check_names(directory, {MANIFEST_NAME, SOURCE_NAME, *(entry.name for entry in manifest.files)})
    try:
        verify(LocalFileSystem(), str(directory), manifest)
    except (StateError, OSError) as error:
        raise RecordError("bad_files", str(error)) from error


def _check_names(directory: Path, named: set[str]) -> None:
    """Files beside those of the manifest, and links to what lies elsewhere, are not what was published."""
    if directory.is_symlink():
        raise RecordError("bad_files", f"{directory} is a symbolic link, expected a directory")
    for path in directory.rglob("[!.]*"):  # file systems leave hidden files of their own
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise RecordError("bad_files", f"{path} is a symbolic link, expected a file")
        if not path.is_dir() and name not in named:
            raise RecordError("bad_files", f"{path} is not in the manifest")


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise RecordError("bad_tensors", f"{path}: {error}") from error


def _read_texts(directory: Path) -> tuple[str, str]:
    try:
        source = (directory / SOURCE_NAME).read_text()
        return source, (directory / LAYOUT_NAME).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError("bad_source", f"{directory}: {error}") from error


def _read_tensors(files: tuple[str, ...]) -> tuple[Shapes, Dtypes]:
    shapes: Shapes = {}
    dtypes: Dtypes = {}
    for path in files:
        with _opened(path) as tensors:
            found = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
            if twice := shapes.keys() & found.keys():
                raise RecordError("bad_tensors", f"{path}: {sorted(twice)[:3]} are in another file too")
            shapes.update((name, tuple(tensor.get_shape())) for name, tensor in found.items())
            dtypes.update((name, tensor.get_dtype()) for name, tensor in found.items())
    return shapes, dtypes


def _check_shapes(expected: Shapes, found: Shapes) -> None:
    if found == expected:
        return
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise RecordError("bad_tensors", f"missing {_few(missing)}, unknown {_few(unknown)}")
    name = next(name for name in expected if found[name] != expected[name])
    raise RecordError("bad_tensors", f"{name} has shape {found[name]}, expected {expected[name]}")


def _check_dtypes(announced: str, found: Dtypes) -> None:
    """Every tensor has the announced dtype; some models keep a few in float32, but never all."""
    expected = _DTYPES.get(announced)
    wrong = sorted(name for name, dtype in found.items() if dtype not in (expected, "F32"))
    if wrong or expected not in found.values():
        odd = wrong or sorted(found)
        raise RecordError("bad_tensors", f"{_few(odd)} have dtype {found[odd[0]]}, announced is {announced[:40]!r}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'none'}{more}"


def _check_finite(files: tuple[str, ...]) -> None:
    """In slices of about equal length: the largest tensor may be a sixth of a model."""
    with ExitStack() as stack, ThreadPoolExecutor(max_workers=parallel(_MAX_THREADS)) as pool:
        slices = [each for path in files for each in _slices(stack.enter_context(_opened(path)))]
        found = pool.map(lambda group: first_nonfinite(dict(group)), _groups(slices))
        if name := next(filter(None, found), None):
            name = name.rsplit(" ", 1)[0]
            raise RecordError("nonfinite", f"{name} holds a number that is not finite")


def _slices(tensors: Any) -> Iterator[tuple[str, Any]]:
    """Of all tensors of a file, each under its tensor's name and a number."""
    for name in tensors.keys():  # noqa: SIM118 - not a mapping
        for number, part in enumerate(tensors.get_tensor(name).reshape(-1).split(_SLICE_NUMBERS)):
            yield f"{name} {number}", part


def _groups(slices: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """Neighbours that together are about as long as one slice."""
    group, filled = [], 0
    for name, part in slices:
        group.append((name, part))
        filled += part.numel()
        if filled >= _SLICE_NUMBERS:
            yield group
            group, filled = [], 0
    yield from [group] if group else []


def first_nonfinite(tensors: Mapping[str, Any]) -> str | None:
    """The first tensor that holds NaN or infinity; null if none does.

    A sum that is finite has finite terms, and on a CPU it takes a fortieth of the time of a look at each of them;
    one that is not may just have overflowed.
    """
    import torch

    sums = torch.stack([tensor.sum().float() for tensor in tensors.values()])
    suspects = [name for name, finite in zip(tensors, sums.isfinite().tolist(), strict=True) if not finite]
    return next((name for name in suspects if not bool(tensors[name].isfinite().all())), None)
