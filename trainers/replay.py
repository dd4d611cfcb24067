"""A step of a run trained again from the log, and compared with what the run announced.

    ledger ──► surviving line ──► newest usable checkpoint before the step, or the model as it is
    global versions ──► adopted where the ledger says so (of a federation's site)
    trajectories ──► the groups that the ledger names, step by step ──► Updates ──► manifest ──► equal?

The manifest holds the sha256 of the weights' bytes, so the stored version itself is not needed; where it
is still there it is compared too, and the first tensor that differs is named. Nothing of the run is
written: no producer is made, and weights go to a temporary directory.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import structlog
import torch
from pydantic import BaseModel

from schemas.config import RunConfig, WeightsConfig
from schemas.errors import ConfigError, RunError, StateError
from schemas.ledger import Numerics, StepEntry, surviving_adoptions, surviving_steps
from schemas.weights import WeightVersion, version_path
from trainers.accounts import Accounts, Versions
from trainers.checkpoint import Checkpoint, newest_usable
from trainers.federation.copies import Copies
from trainers.log import broker_errors, read_topic
from trainers.optimizer import learning_rate
from trainers.planner import Plan, Planner
from trainers.publish import WeightStore
from trainers.ranks import Ranks
from trainers.restart import History, read_history
from trainers.stream import Groups
from trainers.updates import Updates, numerics

_log = structlog.get_logger(__name__)


class Replay(BaseModel):
    """What a replay did and found."""

    run: str
    step: int
    version: int
    """The weight version that the run announced with the step."""
    from_checkpoint: int | None
    """Step of the checkpoint that it began with; null for the model as it was before the run."""
    steps_replayed: int
    """Steps that trained something; those that did not are passed over."""
    groups: int
    samples: int
    tokens: int
    """Of prompts and responses."""
    expected_sha256: str
    """Of the manifest that the run announced."""
    got_sha256: str
    """Of the manifest that was made again."""
    stored: str
    """``equal``, ``gone``, or where the stored weights differ from those made again."""
    equal: bool
    """Whether the hashes are equal, and the stored weights too where there are some."""
    seconds: float


def replay(config: RunConfig, ranks: Ranks, step: int | None = None) -> Replay:
    """Trains up to a step again.

    Args:
        config: of the run; the number format is taken from what it announced.
        ranks: this one process.
        step: of the surviving line; null for its last one.

    Raises:
        UserError: the step is not on the line, its groups or topics are gone, or a checkpoint does not fit.
    """
    started = time.monotonic()
    with broker_errors(config):
        history = read_history(config)
        line = surviving_steps(history.entries)
        target = _find(config.name, line, step)
        announced = _announcement(config, target)
        _require_same_ranks(history, announced, ranks)
        checkpoint, _ = newest_usable(Path(config.learner.checkpoint_root), history, before=target.step)
        updates = _load(config, announced.dtype, ranks, checkpoint)
        first = checkpoint.state.step if checkpoint else 0
        again = [entry for entry in line if first < entry.step <= target.step and entry.trained]
        with _Globals(config, history, updates, checkpoint) as adopted:
            tokens = sum(_train_all(config, history, ranks, adopted, again))
    _compute_as(history, announced.generation, ranks)
    digest, stored = _compare(config, updates, announced)
    return Replay(
        run=config.name,
        step=target.step,
        version=announced.version,
        from_checkpoint=checkpoint.state.step if checkpoint else None,
        steps_replayed=len(again),
        groups=sum(len(entry.trained) for entry in again),
        samples=sum(trained.samples for entry in again for trained in entry.trained),
        tokens=tokens,
        expected_sha256=announced.manifest_sha256,
        got_sha256=digest,
        stored=stored,
        equal=digest == announced.manifest_sha256 and stored in ("equal", "gone"),
        seconds=round(time.monotonic() - started, 3),
    )


def _find(run: str, line: list[StepEntry], step: int | None) -> StepEntry:
    if not line:
        raise RunError(f"run {run!r} has no step yet: there is nothing to replay")
    if step is None:
        return line[-1]
    for entry in line:
        if entry.step == step:
            return entry
    raise RunError(
        f"step {step} is not on the surviving line of run {run!r}, which has steps {line[0].step} to {line[-1].step}"
    )


def _announcement(config: RunConfig, target: StepEntry) -> WeightVersion:
    for record in read_topic(config, config.topics.weights):
        announced = WeightVersion.decode(record.value)
        if announced.version == target.version:
            return announced
    raise RunError(
        f"version {target.version} of step {target.step} is not in {config.topics.weights}: records are gone"
    )


def _require_same_ranks(history: History, announced: WeightVersion, ranks: Ranks) -> None:
    start = history.start_of(announced.generation)
    if start and start.numerics and start.numerics.ranks != ranks.size:
        raise ConfigError(
            f"the learner trained step {announced.step} on {start.numerics.ranks} ranks, and a replay has "
            f"{ranks.size}: sums over ranks cannot be made again bit for bit"
        )


def _load(config: RunConfig, dtype: str, ranks: Ranks, checkpoint: Checkpoint | None) -> Updates:
    try:
        return Updates(config, dtype, ranks, checkpoint)
    except FileNotFoundError as error:
        raise RunError(f"the learner removed the checkpoint while it was read ({error}); try again") from error


def _train_all(
    config: RunConfig, history: History, ranks: Ranks, adopted: "_Globals", entries: list[StepEntry]
) -> Iterator[int]:
    """Trains steps again; yields the tokens of each."""
    planner = Planner(config.learner.groups_per_step, config.learner.max_staleness, Accounts(), Versions())
    with closing(Groups(config)) as groups:
        for generation, steps in groupby(entries, key=lambda entry: entry.generation):
            _compute_as(history, generation, ranks)
            for entry in steps:
                adopted.before(entry)
                plan = _plan(planner, groups, entry)
                planned = learning_rate(config.learner, entry.step - 1, config.learner.steps)
                adopted.updates.train(plan, entry.metrics.get("learning_rate", planned))
                samples = [sample for arrival in plan.arrivals for sample in arrival.samples]
                yield sum(len(sample.prompt_token_ids) + len(sample.response_token_ids) for sample in samples)


class _Globals:
    """Where the line went on from global versions of a federation.

    A checkpoint is written before the adoption that follows its step.
    """

    def __init__(self, config: RunConfig, history: History, updates: Updates, checkpoint: Checkpoint | None) -> None:
        first = checkpoint.state.step if checkpoint else 0
        self._config, self.updates = config, updates
        self._to_come = [entry for entry in surviving_adoptions(history.entries) if entry.step >= first]
        self._known = checkpoint.state.federation if checkpoint else None
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        scratch = Path(self._opened.enter_context(tempfile.TemporaryDirectory(prefix="asyncflow-replay-")))
        store, root = self._config.federation.store, Path(self._config.learner.checkpoint_root)
        self._near, self._far = (Copies(store, each, keep=1) for each in (root, scratch))
        if self._known and self._config.federation.proximal_mu:
            self.updates.anchor(self._directory(self._known["base_version"], self._known["base_sha256"]))
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def before(self, step: StepEntry) -> None:
        """Adopts what the learner had adopted before a step and after the one before it."""
        while self._to_come and self._to_come[0].step < step.step:
            entry = self._to_come.pop(0)
            directory = self._directory(entry.global_version, entry.manifest_sha256)
            self.updates.adopt(directory, forget=not self._config.federation.keep_optimizer)

    def _directory(self, version: int, manifest_sha256: str) -> Path:
        try:
            return self._near.find(version, manifest_sha256) or self._far.fetch(version, manifest_sha256)
        except (OSError, StateError) as error:
            raise RunError(
                f"global version {version}, which the run went on from, is neither below learner.checkpoint_root nor "
                f"in federation.store = {self._config.federation.store!r}: {error}"
            ) from error


def _plan(planner: Planner, groups: Groups, entry: StepEntry) -> Plan:
    try:
        return planner.again(entry, groups.fetch(entry))
    except StateError as error:
        raise RunError(f"step {entry.step} cannot be trained again: {error}") from error


def _compute_as(history: History, generation: int, ranks: Ranks) -> None:
    """Takes as many threads as the learner of a generation had; says what cannot be made the same."""
    start = history.start_of(generation)
    if start is None or start.numerics is None:
        return
    if torch.get_num_threads() != start.numerics.threads:
        torch.set_num_threads(start.numerics.threads)
    here = numerics(ranks)
    if here != start.numerics:
        _log.warning("another machine than the learner's: bits may differ", here=_words(here),
                     learner=_words(start.numerics), generation=generation)  # fmt: skip


def _words(given: Numerics) -> str:
    return f"torch {given.torch}, {given.device}, {given.threads} threads, {given.ranks} ranks"


def _compare(config: RunConfig, updates: Updates, announced: WeightVersion) -> tuple[str, str]:
    """The sha256 of the manifest made again, and how the stored weights compare."""
    through_memory = config.weights.transport != "store"
    found = _compare_as(config, updates, announced, as_files=not through_memory)
    if through_memory and found[0] != announced.manifest_sha256:  # it may have been published through the store
        found = _compare_as(config, updates, announced, as_files=True)
    return found


def _compare_as(config: RunConfig, updates: Updates, announced: WeightVersion, *, as_files: bool) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="asyncflow-replay-") as scratch:
        # A manifest does not tell how its buffer travelled, and nccl's can be made on any device.
        with closing(WeightStore(WeightsConfig(root=scratch, transport="nccl"))) as store:
            digest = updates.write(store, announced.version, announced.step, as_files=as_files)
        made = Path(version_path(scratch, announced.version))
        return digest, _compare_stored(config.weights.root, announced.version, made)


def _compare_stored(root: str, version: int, made: Path) -> str:
    from fsspec.core import url_to_fs

    files, base = url_to_fs(root)
    compared = "gone"
    for file in sorted(made.glob("*.safetensors")):
        try:
            stored = files.cat_file(f"{version_path(base, version)}/{file.name}")
        except FileNotFoundError:
            continue
        compared = _compare_file(stored, file.read_bytes())
        if compared != "equal":
            break
    return compared


def _compare_file(stored: bytes, expected: bytes) -> str:
    from safetensors.torch import load

    if stored == expected:
        return "equal"
    try:
        return first_difference(load(stored), load(expected))
    except Exception as error:  # noqa: BLE001 - decode of outside bytes
        return f"not a safetensors file any more: {error}"


def first_difference(stored: dict[str, Any], made: dict[str, Any]) -> str:
    """Names the first tensor, by name, that differs, and by how much."""
    for name in sorted(stored.keys() | made.keys()):
        if name not in stored or name not in made:
            return f"{name} is only in the {'stored' if name in stored else 'replayed'} weights"
        if stored[name].shape != made[name].shape:
            return f"{name} has shape {list(stored[name].shape)}, replayed {list(made[name].shape)}"
        if not torch.equal(stored[name], made[name]):
            gap = (stored[name].double() - made[name].double()).abs()
            return (
                f"{name} differs in {int((gap != 0).sum())} of {gap.numel()} values, by at most {float(gap.max()):.3g}"
            )
    return "the same tensors in other bytes"
