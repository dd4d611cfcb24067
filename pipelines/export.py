"""A weight version as a Hugging Face directory that transformers and vLLM load.

    weights topic ──announcement──► weight store ──verified──► safetensors ─┐
    evals topic ────which is best?                                          ├─► DIR, with a manifest
    model.path ──── config.json, tokenizer, generation_config.json ─────────┘

Of a run that trains an adapter the sum of model and adapter is written, or the adapter as it was published.
Everything is written beside DIR, read back, compared and only then given its name, so a directory that is
there is whole. Nothing is asked of the learner; the version has to be in the store still.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel

from pipelines.evaluation.announcements import read_results
from pipelines.log import read_topic
from schemas.config import RunConfig
from schemas.errors import ConfigError, RecordError, RunError, StateError
from schemas.evals import best_of
from schemas.manifests import MANIFEST_NAME, Manifest, describe, sha256, verify
from schemas.weights import WeightVersion
from trainers.disk import disk_errors
from trainers.lora import merge

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEPT: Final = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "*.model", "*.tiktoken", "chat_template*", "preprocessor_config.json",
    "processor_config.json", "*.py", "LICENSE*",
)  # fmt: skip
"""What belongs to a model besides its weights."""
_INDEX_NAME: Final = "model.safetensors.index.json"

Word = Literal["newest", "best"]
Wanted = int | Word
_WORDS: Final[tuple[Word, ...]] = get_args(Word)


class Exported(BaseModel):
    """What was written, and where."""

    directory: str
    run: str
    version: int
    step: int
    dtype: str
    files: int
    size_bytes: int
    manifest_sha256: str
    """Of the directory's own ``MANIFEST.json``."""


def parse_version(text: str) -> Wanted:
    """``newest``, ``best`` or a number.

    Raises:
        ConfigError: it is something else.
    """
    for word in _WORDS:
        if text == word:
            return word
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--version {text!r}: expected newest, best or the number of a weight version")


def export(config: RunConfig, wanted: Wanted, target: Path, *, as_adapter: bool = False) -> Exported:
    """Writes a version to a directory.

    Args:
        config: of the run; its log can be read.
        wanted: which version.
        target: a directory that does not exist, or is empty.
        as_adapter: an adapter is not added to its model.

    Raises:
        ConfigError: the directory holds something, or the run trains no adapter.
        RunError: the run has no such version, or its store has not any more.
        StateError: the version is not what was announced.
        DiskError: there is no room or no permission.
    """
    require_free_place(target)
    if as_adapter and not config.learner.lora.trains_adapter:
        raise ConfigError(f"--adapter: run {config.name!r} trains whole weights (learner.lora.rank = 0); leave it out")
    announced = find_version(config, wanted)
    with disk_errors("export", target), beside(target) as partial:
        with _fetched(config, announced) as (source, manifest):
            if config.learner.lora.trains_adapter and not as_adapter:
                _merge(config, announced, source, partial)
            else:
                _copy(source, manifest, partial)
        if not as_adapter:
            _complete(config, announced, partial)
        facts = announced.model_dump(mode="json", exclude={"schema_version"})
        digest, sizes = seal(partial, {"kind": "export", "run": config.name, **facts})
    return Exported(
        directory=str(target), run=config.name, version=announced.version, step=announced.step,
        dtype=announced.dtype, files=len(sizes), size_bytes=sum(sizes), manifest_sha256=digest,
    )  # fmt: skip


def find_version(config: RunConfig, wanted: Wanted) -> WeightVersion:
    """The announcement of a version.

    Raises:
        RunError: there is none, with those that there are.
    """
    announced = _announcements(config)
    if not announced:
        raise RunError(f"run {config.name!r} has announced no weights yet")
    number = _number(config, wanted, announced)
    if number not in announced:
        raise RunError(
            f"run {config.name!r} never announced version {number}; it has {min(announced)} to {max(announced)}"
        )
    return announced[number]


def _number(config: RunConfig, wanted: Wanted, announced: dict[int, WeightVersion]) -> int:
    if wanted == "newest":
        return max(announced)
    if wanted != "best":
        return wanted
    best = best_of(read_results(config), config.evaluation.name)
    if best is None:
        raise RunError(
            f"no version of run {config.name!r} is marked as the best one of evaluation "
            f"{config.evaluation.name!r}: evaluate it while it trains (asyncflow evaluate), or give a number"
        )
    return best.version


def _announcements(config: RunConfig) -> dict[int, WeightVersion]:
    """By number; what a learner announced after it was replaced is left out."""
    found: dict[int, WeightVersion] = {}
    newest: WeightVersion | None = None
    for version in read_topic(config.kafka, config.topics.weights, WeightVersion.decode):
        if newest is None or version.supersedes(newest):
            newest = found[version.version] = version
    return found


def require_free_place(target: Path) -> None:
    """Raises ``ConfigError`` unless a directory does not exist, or is empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to {target}: exists and is not an empty directory; give another one")


@contextmanager
def beside(target: Path) -> "Iterator[Path]":
    """A directory that becomes ``target`` if all goes well, and else is removed."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _fetched(config: RunConfig, announced: WeightVersion) -> "Iterator[tuple[Path, Manifest]]":
    """A version's files in a local directory, verified as a worker would."""
    from transforms.generation.worker.store import WeightStore
    from transforms.generation.worker.verify import read_expectation

    expectation = read_expectation(Path(config.model.path), config.worker.max_model_len_tokens, config.learner.lora)
    with WeightStore(config.weights.root) as store:
        try:
            directory, manifest = store.fetch(announced)
            if not expectation.check(announced, directory, manifest).files:
                raise RunError(
                    f"version {announced.version} travelled through the memory of the learner (weights.transport = "
                    f"{config.weights.transport!r}) and was never written: nothing is left to export"
                )
            yield directory, manifest
        except (RecordError, FileNotFoundError) as error:
            raise _explain(config, announced, error, still_there=store.has(announced.version)) from error


def _explain(
    config: RunConfig, announced: WeightVersion, error: Exception, *, still_there: bool
) -> RunError | StateError:
    if not still_there:
        return RunError(
            f"version {announced.version} is not in the weight store {config.weights.root!r} any more: the newest "
            f"{config.weights.keep} and the best by evaluation stay; raise weights.keep, or give another --version"
        )
    return StateError(f"version {announced.version} in {config.weights.root!r} is not what was announced: {error}")


def _copy(source: Path, manifest: Manifest, directory: Path) -> None:
    """Raises ``StateError`` if what arrived is not what the manifest says."""
    files = [directory / entry.name for entry in manifest.files]
    for file in files:
        shutil.copyfile(source / file.name, file)
    verify(LocalFileSystem(), str(directory), manifest)
    _write_index(files, directory)


def _merge(config: RunConfig, announced: WeightVersion, source: Path, directory: Path) -> None:
    """Writes the model with its adapter added, in the number format of the run."""
    import torch

    dtype: torch.dtype = getattr(torch, announced.dtype)
    files = merge(Path(config.model.path), source, config.learner.lora, dtype, directory)
    _write_index(files, directory)


def _write_index(files: Sequence[Path], directory: Path) -> None:
    weights = [file for file in files if file.suffix == ".safetensors"]
    if len(weights) > 1:
        (directory / _INDEX_NAME).write_text(json.dumps(_index(weights), indent=2) + "\n")


def _index(files: Sequence[Path]) -> dict[str, Any]:
    """Which file holds which tensor, in the form that transformers and vLLM read."""
    from safetensors import safe_open

    places: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file.name)
    size = sum(file.stat().st_size for file in files)
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}


def _complete(config: RunConfig, announced: WeightVersion, directory: Path) -> None:
    """Configuration and tokenizer, as they were when training started; only the dtype is that of the weights."""
    model = Path(config.model.path)
    for file in (each for pattern in _KEPT for each in model.glob(pattern) if each.is_file()):
        shutil.copyfile(file, directory / file.name)
    tree = json.loads((directory / "config.json").read_text())
    tree.pop("torch_dtype", None)  # the old name of the same key
    tree["dtype"] = announced.dtype
    (directory / "config.json").write_text(json.dumps(tree, indent=2) + "\n")
    if not (directory / "generation_config.json").exists():
        _write_generation_config(directory)


def _write_generation_config(directory: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    GenerationConfig.from_model_config(AutoConfig.from_pretrained(directory)).save_pretrained(directory)


def seal(directory: Path, facts: dict[str, Any]) -> tuple[str, list[int]]:
    """Writes a directory's own manifest; returns its sha256 and the sizes of the files."""
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    entries = tuple(describe(LocalFileSystem(), str(directory), name) for name in names)
    manifest = Manifest(files=entries, facts=facts).encode()
    (directory / MANIFEST_NAME).write_bytes(manifest)
    return sha256(manifest), [entry.size for entry in entries]
