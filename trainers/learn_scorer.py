"""A scorer's learner: a further reader of the trajectories that the learner trains on.

    trajectories → stream → backlog → batch → engine ─┬─► checkpoints below scorer.root
                              └─ held-out groups ─────┼─► reports: JSON lines on the standard output
                                                      └─► at the end a Hugging Face directory, scorer.root/model

It has no producer: nothing of the run is written, and its positions are in its own checkpoints. It shares the
learner's stream, batches, engine, optimizer and form of checkpoints; what is trained is in :mod:`trainers.scorers`.
Rank 0 is the :class:`ScorerLearner`; the other ranks do as they are told, as the learner's do.
"""

import fcntl
import json
import math
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from schemas.config import RunConfig
from schemas.errors import DivergedError, RunError, StateError
from schemas.ledger import TrainedGroup
from schemas.lora import LoraConfig
from schemas.manifests import MANIFEST_NAME
from schemas.objectives import ObjectiveConfig
from trainers.accounts import Accounts
from trainers.advantages import has_variance, is_known
from trainers.backlog import Backlog
from trainers.checkpoint import CheckpointStore, describe_all, first_usable, read_verified, require_fit
from trainers.disk import disk_errors, sync_tree, write_atomically
from trainers.engine import Outcome
from trainers.learn import follow
from trainers.log import broker_errors, topic_ids
from trainers.optimizer import learning_rate
from trainers.planner import Arrival
from trainers.precision import fastest_dtype
from trainers.ranks import Ranks
from trainers.scorer_orders import KINDS, Orders
from trainers.stream import Groups, Stream
from trainers.updates import fingerprint_of

_log = structlog.get_logger(__name__)

_POLL_S: Final = 0.1
_MODEL: Final = "model"
_LINE: Final = 1
"""Checkpoints of a scorer are one line: there is no ledger, and so no generation."""


@dataclass(frozen=True, slots=True)
class ScorerState:
    """What a scorer must know to go on, besides weights and optimizer. All values are JSON."""

    step: int
    fingerprint: dict[str, str | int]
    """What has to be the same for the shards to fit."""
    topic_ids: dict[str, str]
    positions: dict[str, int]
    """Next offset of each trajectories partition."""
    letters_position: int
    """Next offset of the dead-letters topic, which the stream reads along."""
    accounts: dict[str, Any]
    """Groups that were trained, held out or of no use; see :meth:`trainers.accounts.Accounts.dump`."""
    held_out: list[dict[str, Any]]
    """The groups of the next report, and where they lie."""


def run(config: RunConfig) -> int:
    """Trains until ``scorer.steps`` are done, the log is read to its end, or a signal comes.

    Returns:
        0; faults are raised.

    Raises:
        UserError: what the user can mend, in words.
        StateError: checkpoints and the log do not fit together.
        DivergedError: gradients are not finite any more.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ranks = Ranks()
    try:
        if ranks.leads:
            with broker_errors(config):
                lead(config, ranks, stop)
        else:
            follow(as_scorer(config), ranks, KINDS[config.scorer.kind])
    finally:
        ranks.leave()
    return 0


def lead(config: RunConfig, ranks: Ranks, stop: threading.Event) -> None:
    """The life of rank 0."""
    with ExitStack() as opened:
        ScorerLearner(as_scorer(config), ranks, stop, opened).loop()
        ranks.broadcast(("end", None))


def as_scorer(config: RunConfig) -> RunConfig:
    """The run's configuration with what is the scorer's in place of the learner's."""
    own = {
        "learning_rate": config.scorer.learning_rate,
        "groups_per_step": config.scorer.groups_per_step,
        "steps": config.scorer.steps or config.learner.steps,
        "objective": ObjectiveConfig(),
        "lora": LoraConfig(),
    }
    return config.model_copy(update={"learner": config.learner.model_copy(update=own)})


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a scorer whose hashes were compared."""

    directory: Path
    state: ScorerState
    manifest_sha256: str


class ScorerLearner:
    """Rank 0.

    Args:
        config: as :func:`as_scorer` gives it.
        ranks: all that train.
        stop: is set by a signal.
        opened: closes the connections.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, stop: threading.Event, opened: ExitStack) -> None:
        self._config, self._scorer, self._stop = config, config.scorer, stop
        self._topics = topic_ids(config, [config.topics.trajectories])
        root = Path(self._scorer.root)
        self._checkpoints = CheckpointStore(root, config.learner.keep_checkpoints)
        opened.enter_context(_alone(root))
        found = _newest(root)
        self._checkpoints.sweep()
        dtype = fastest_dtype() if config.model.dtype == "auto" else config.model.dtype
        self._fingerprint: dict[str, str | int] = {
            **fingerprint_of(config, dtype, None),
            "scorer.kind": self._scorer.kind,
        }
        if found:
            require_fit(found.state.fingerprint, self._fingerprint, found.directory)
            _require_same_topic(config, found.state, self._topics)
        self._saved: Saved | None = found
        self._step = found.state.step if found else 0
        self._orders = Orders(config, dtype, ranks, found.directory if found else None)
        self._stream = opened.enter_context(closing(_open(config, found.state if found else None)))
        self._backlog = self._restore(found.state if found else None)
        self._ends = self._stream.ends()
        self._skips = 0

    def _restore(self, state: ScorerState | None) -> Backlog:
        held = [TrainedGroup.model_validate(each) for each in (state.held_out if state else [])]
        return Backlog(
            run=self._config.name,
            share=self._scorer.held_out,
            can_teach=self._can_teach,
            held_out=deque(_find(self._stream.groups, held), maxlen=self._scorer.held_out_groups),
            accounts=Accounts.restore(state.accounts) if state else Accounts(),
        )

    def _can_teach(self, arrival: Arrival) -> bool:
        if arrival.highest_token >= self._orders.vocabulary:
            _log.warning("group passed over: the model does not know its tokens", group=str(arrival.group))
            return False
        teaches = has_variance if self._scorer.kind == "reward" else is_known
        return teaches(arrival.rewards) and arrival.can_teach(())

    # ------------------------------------------------------------------- loop

    def loop(self) -> None:
        """Steps until it is to end, then a last report, a checkpoint and the model."""
        _log.info("started", kind=self._scorer.kind, step=self._step)
        while not self._is_done():
            self._listen()
            while self._is_ready() and not self._is_done():
                self._train()
        self._report()
        self._save()
        self._write_model()

    def _is_done(self) -> bool:
        if self._stop.is_set() or (self._scorer.steps is not None and self._step >= self._scorer.steps):
            return True
        return self._scorer.until_end_of_log and self._has_read_all() and not self._backlog.waiting

    def _has_read_all(self) -> bool:
        """What lay in the log at the start."""
        positions = self._stream.positions()
        return all(positions[partition] >= end for partition, end in self._ends.items())

    def _is_ready(self) -> bool:
        rest = self._scorer.until_end_of_log and self._has_read_all()
        return len(self._backlog.waiting) >= (1 if rest else self._scorer.groups_per_step)

    def _listen(self) -> None:
        for event in self._stream.poll(_POLL_S):
            if isinstance(event, Arrival):
                self._backlog.offer(event)

    def _train(self) -> None:
        groups = self._backlog.take(self._scorer.groups_per_step)
        rate = learning_rate(self._config.learner, self._step, self._config.learner.steps)
        outcome = self._orders.train(groups, rate)
        self._step += 1
        figures = {name: round(value, 5) for name, value in outcome.figures.items()}
        _log.info("step", step=self._step, groups=len(groups), loss=round(outcome.loss, 5), **figures)
        self._require_finite(outcome)
        if self._step % self._scorer.report_every == 0:
            self._report()
        if self._step % self._config.learner.checkpoint_every == 0:
            self._save()

    def _require_finite(self, outcome: Outcome) -> None:
        self._skips = 0 if outcome.applied else self._skips + 1
        if self._skips >= self._config.learner.max_skips:
            raise DivergedError(
                f"the gradients of {self._skips} steps in a row were not finite (learner.max_skips): look at "
                "model.dtype and scorer.learning_rate; the next start goes on from the newest checkpoint"
            )

    def _report(self) -> None:
        """One line of JSON: how well groups are judged that were not trained."""
        held_out = list(self._backlog.held_out)
        figures = self._orders.measure(held_out) if held_out else {}
        told = {name: round(value, 6) if math.isfinite(value) else None for name, value in figures.items()}
        line = {"kind": self._scorer.kind, "step": self._step, "held_out_groups": len(held_out), **told}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    # ------------------------------------------------------------------- what stays

    def _save(self) -> None:
        before = self._saved
        if self._skips or self._step == (before.state.step if before else 0):
            return
        with self._checkpoints.new_directory(_LINE, self._step) as directory:
            self._orders.save(directory)
            state, parent = self._state(), before.manifest_sha256 if before else None
            self._saved = Saved(directory, state, self._checkpoints.seal(directory, asdict(state), parent))
        self._checkpoints.prune()
        _log.info("checkpoint", step=self._step, directory=str(directory))

    def _state(self) -> ScorerState:
        positions = self._backlog.positions(self._stream.positions())
        return ScorerState(
            step=self._step,
            fingerprint=self._fingerprint,
            topic_ids=self._topics,
            positions={str(partition): offset for partition, offset in positions.items()},
            letters_position=self._stream.letters_position(),
            accounts=self._backlog.accounts.dump(),
            held_out=[arrival.trained().model_dump(mode="json") for arrival in self._backlog.held_out],
        )

    def _write_model(self) -> None:
        """Beside the old one, which is there until the new one is whole."""
        target = Path(self._scorer.root, _MODEL)
        partial = target.with_name(f".{_MODEL}.partial")
        with disk_errors("scorer", target):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            facts = self._orders.write(partial)
            facts |= {"kind": "scorer", "run": self._config.name, "scorer": self._scorer.kind, "step": self._step}
            write_atomically(partial / MANIFEST_NAME, describe_all(partial, facts).encode())
            sync_tree(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        _log.info("model written", step=self._step, directory=str(target))


def _newest(root: Path) -> Saved | None:
    """The newest checkpoint whose hashes are right.

    Raises:
        StateError: there are some, but none can be used.
    """
    found, faults = first_usable(root, _read)
    if found or not faults:
        return found
    raise StateError(
        f"no usable checkpoint below scorer.root = {str(root)!r}: {'; '.join(faults)}. Restore one, or give another "
        "root"
    )


def _read(directory: Path) -> Saved:
    known, manifest_sha256, _ = read_verified(directory)
    return Saved(directory, ScorerState(**known), manifest_sha256)


def _require_same_topic(config: RunConfig, state: ScorerState, topics: dict[str, str]) -> None:
    if state.topic_ids != topics:
        raise StateError(
            f"topic {config.topics.trajectories!r} was deleted and made again since the checkpoint of step "
            f"{state.step}; give another scorer.root"
        )


def _open(config: RunConfig, state: ScorerState | None) -> Stream:
    if state is None:
        return Stream(config, None, None)
    positions = {int(partition): offset for partition, offset in state.positions.items()}
    return Stream(config, positions, state.letters_position)


def _find(groups: Groups, wanted: list[TrainedGroup]) -> Iterator[Arrival]:
    """Those that are still in the log: what only makes a report may be gone."""
    for each in wanted:
        try:
            yield groups.find(each)
        except StateError as error:
            _log.warning("held-out group left out", reason=str(error))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Takes a scorer's directory for this process.

    Raises:
        RunError: another process has it.
    """
    with (root / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"scorer.root = {str(root)!r} is in use by another process; end that one, or give another root"
            ) from error
        yield
