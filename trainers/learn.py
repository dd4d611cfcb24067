"""The learner: from whole groups on the trajectories topic to announced weight versions.

    trajectories → stream → planner → batch → losses → engine → publish → commit → weights

    start   fence older learners → read the ledger → newest verified checkpoint, or the model as it is
            → seek → announce its weights under a new generation → redo the steps of the dead line
    loop    wait for a plan → train → publish → commit → now and then a checkpoint
    end     after ``learner.steps`` or a signal: a last checkpoint

Rank 0 is the :class:`Learner`: it plans, and it alone talks to Kafka. The other ranks do as they are
told (:func:`follow`). Everything that a step did becomes visible in one transaction, so whatever dies
in between, the log tells a consistent story; a step whose transaction did not commit never was.
"""

import hashlib
import signal
import threading
import time
from pathlib import Path
from typing import Any, Final

import structlog

from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError, StateError
from schemas.ledger import DroppedGroup, Position, Settings, StartEntry, StepEntry, decode_entry
from schemas.weights import WeightVersion
from trainers import metrics
from trainers.accounts import Accounts, Versions
from trainers.admission import Admission
from trainers.batch import share_out, to_examples
from trainers.checkpoint import Checkpoint, CheckpointStore, State, require_fit
from trainers.commit import Announcement, Committer
from trainers.engine import Engine, Outcome, Work, learning_rate
from trainers.log import broker_errors, open_consumer, partitions_of, read_topic, topic_ids
from trainers.planner import Arrival, Plan, Planner
from trainers.precision import fastest_dtype
from trainers.publish import WeightStore, probe_tokens
from trainers.ranks import Ranks
from trainers.restart import History
from trainers.stream import Event, Fault, Letter, Stream

_log = structlog.get_logger(__name__)

_POLL_S: Final = 0.1
"""How long the stream is waited for at a time: also how soon a signal is seen."""
_PATIENCE_S: Final = 30.0
"""After this long without a plan the log says what is waited for."""
_FIRST_PROMPTS_S: Final = 0.5
"""How long the first admission waits for prompts; later ones are admitted as they come."""
_STAGES_BEFORE: Final = ("generate", "score", "assemble", "learn")


def run(config: RunConfig) -> int:
    """Trains until ``learner.steps`` are done or a signal comes; see the module.

    Returns:
        0; faults are raised.

    Raises:
        UserError: what the user can mend, in words.
        FencedError: a newer learner has taken over the run.
        StateError: checkpoints, records or the ledger do not fit together.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ranks = Ranks()
    try:
        if not ranks.leads:
            follow(config, ranks)
        else:
            with broker_errors(config):
                lead(config, ranks, stop)
    finally:
        ranks.leave()
    return 0


def lead(config: RunConfig, ranks: Ranks, stop: threading.Event) -> None:
    """The life of rank 0."""
    learner = Learner(config, ranks, stop)
    try:
        learner.start()
        learner.loop()
        ranks.broadcast(("end", None))
    finally:
        learner.close()


def follow(config: RunConfig, ranks: Ranks) -> None:
    """The life of every other rank: the same collective calls in the same order."""
    engine = Engine(config, ranks.broadcast(), ranks)
    while True:
        order, argument = ranks.broadcast()
        if order == "load":
            engine.load(argument)
        elif order == "train":
            engine.train(ranks.scatter())
        elif order == "save":
            engine.save(argument)
            ranks.barrier()
        else:
            return


class Learner:
    """Rank 0.

    Attributes:
        steps_done: along the surviving line.
        version: the newest announced weight version.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, stop: threading.Event) -> None:
        self._config, self._ranks, self._stop = config, ranks, stop
        self._gauges = metrics.Gauges(config.learner.metrics_port)
        self._topic_ids = _find_topics(config)
        self._committer = Committer(config)  # from here on no older learner can write
        self._history = History([_entry(record) for record in read_topic(config, config.topics.ledger)])
        self._generation = self._history.generation + 1
        self._checkpoints = CheckpointStore(Path(config.learner.checkpoint_root), config.learner.keep_checkpoints)
        self._weights = WeightStore(config.weights)
        self.steps_done = self.version = 0
        self._lettered: set[tuple[int, int]] = set()
        self._letters: list[DeadLetter] = []
        self._waited_s = 0.0

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """From whatever earlier learners left to the first announcement and the line's last known step."""
        checkpoint = self._checkpoints.newest_verified(self._history)
        self._engine = self._make_engine(checkpoint)
        self._restore(checkpoint)
        self._announce(checkpoint)
        for entry in self._history.steps_after(self.steps_done):
            if self._stop.is_set() or self.steps_done >= self._config.learner.steps:
                return
            _log.info("redo", step=entry.step, of_generation=entry.generation)
            self._step(self._planner.again(entry, self._stream.fetch(entry)))
            self._maybe_checkpoint()

    def _make_engine(self, checkpoint: Checkpoint | None) -> Engine:
        dtype = self._config.model.dtype
        self._dtype = self._ranks.broadcast(fastest_dtype() if dtype == "auto" else dtype)
        if checkpoint:
            require_fit(checkpoint.state.fingerprint, self._fingerprint(), checkpoint.directory)
        engine = Engine(self._config, self._dtype, self._ranks)
        self._probe = probe_tokens(self._config.model.path)
        engine.check(self._probe)
        if checkpoint:
            self._ranks.broadcast(("load", checkpoint.directory))
            engine.load(checkpoint.directory)
        return engine

    def _fingerprint(self) -> dict[str, str | int]:
        model = Path(self._config.model.path)
        description = model / "config.json"
        return {
            "run": self._config.name,
            "model": model.name,
            "model_config_sha256": _sha256(description.read_bytes()) if description.is_file() else "missing",
            "dtype": self._dtype,
            "zero_stage": self._config.learner.zero_stage,
            "ranks": self._ranks.size,
        }

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        config, state = self._config, checkpoint.state if checkpoint else None
        if state and state.topic_ids != self._topic_ids:
            raise StateError(
                f"the topics of run {config.name!r} were deleted and made again since the checkpoint of "
                f"step {state.step}; start a run of another name"
            )
        self.steps_done = state.step if state else 0
        accounts = Accounts.restore(state.accounts) if state else Accounts()
        versions = Versions(skipped=self._history.skipped_steps(self.steps_done))
        for record in read_topic(config, config.topics.weights):
            announced = WeightVersion.decode(record.value)
            versions.steps[announced.version] = announced.step
        self.version = max(versions.newest, self._weights.newest(), state.version if state else 0)
        limits = config.learner
        self._accounts, self._versions = accounts, versions
        self._planner = Planner(limits.groups_per_step, limits.max_staleness, accounts, versions)
        self._planner.drops = [DroppedGroup.model_validate(drop) for drop in (state.drops if state else [])]
        self._open_stream(state)
        self._open_admission(state)
        self._checkpoint = checkpoint

    def _open_stream(self, state: State | None) -> None:
        positions = {int(partition): offset for partition, offset in state.positions.items()} if state else None
        self._stream = Stream(self._config, positions, state.letters_position if state else None)

    def _open_admission(self, state: State | None) -> None:
        newest: dict[int, int] = {}
        for record in read_topic(self._config, self._config.topics.admission):
            newest = AdmissionFrontier.decode(record.value).frontier
        consumer = open_consumer(self._config)
        prompts = partitions_of(consumer, self._config.topics.prompts)
        self._admission = Admission(consumer, prompts, self._accounts.skip)
        counted = {int(partition): offset for partition, offset in state.frontier.items()} if state else {}
        self._admission.recount(counted, state.admitted if state else 0, newest)
        for letter in self._stream.letters_so_far():
            self._take(letter)

    def _announce(self, checkpoint: Checkpoint | None) -> None:
        position = checkpoint.state.at if checkpoint else None
        if position is None and self._generation > 1:
            position = Position(generation=self._generation - 1, step=0)
        limits = self._config.learner
        settings = Settings(max_staleness=limits.max_staleness, groups_per_step=limits.groups_per_step)
        start = StartEntry(generation=self._generation, continues=position, settings=settings)
        recorded = {entry.manifest_sha256 for entry in self._history.checkpoints()}
        late = [checkpoint.entry()] if checkpoint and checkpoint.manifest_sha256 not in recorded else []
        weights = self._publish(self.steps_done)
        self._admission.advance(self._target(), _FIRST_PROMPTS_S)
        self._committer.commit([*late, start, weights, self._frontier()])
        self._note(weights)
        _log.info("started", generation=self._generation, step=self.steps_done, version=self.version)

    # ------------------------------------------------------------------- loop

    def loop(self) -> None:
        """Steps until all are done or a signal comes, then a last checkpoint."""
        while self.steps_done < self._config.learner.steps:
            plan = self._wait_for_plan()
            if plan is None:
                _log.info("signal received, ending after a checkpoint", step=self.steps_done)
                break
            self._step(plan)
            self._maybe_checkpoint()
        self._save_checkpoint()

    def _wait_for_plan(self) -> Plan | None:
        started, said = time.monotonic(), time.monotonic()
        while not self._stop.is_set():
            for event in self._stream.poll(_POLL_S):
                self._take(event)
            self._planner.drop_stale(self.steps_done)
            self._admit()
            if self._planner.is_ready():
                self._waited_s = time.monotonic() - started
                return self._planner.take(self.steps_done)
            if time.monotonic() - said > _PATIENCE_S:
                said = time.monotonic()
                _log.warning("waiting for groups", have=len(self._planner.waiting),
                             need=self._config.learner.groups_per_step, admitted=self._admission.admitted,
                             finished=self._accounts.count)  # fmt: skip
        return None

    def _take(self, event: Event) -> None:
        if isinstance(event, Letter):
            self._take_letter(event.letter)
        elif isinstance(event, Fault):
            self._take_fault(event)
        else:
            self._take_arrival(event)

    def _take_arrival(self, arrival: Arrival) -> None:
        if not self._is_admitted(arrival.group):
            detail = f"group {arrival.group} was never admitted"
            self._take_fault(Fault(arrival.at, (), "not_admitted", detail, b""))
            return
        reason = self._planner.offer(arrival)
        if reason:
            _log.info("group dropped", group=str(arrival.group), reason=reason)

    def _take_letter(self, letter: DeadLetter) -> None:
        if letter.topic == self._config.topics.prompts and letter.stage in _STAGES_BEFORE:
            if letter.group not in self._planner.waiting and letter.partition in self._admission.frontier:
                self._accounts.finish(letter.group)
        elif letter.topic == self._config.topics.trajectories:
            self._lettered.add((letter.partition, letter.offset))

    def _take_fault(self, fault: Fault) -> None:
        """Writes off the groups that a bad record names, or else the record itself."""
        named = [group for group in fault.groups if self._is_admitted(group)]
        detail = f"{self._config.topics.trajectories}[{fault.at[0]}] offset {fault.at[1]}: {fault.detail}"
        for group in named:
            if group not in self._planner.waiting and self._accounts.finish(group):
                source = (self._config.topics.prompts, group.partition, group.offset)
                self._letters.append(DeadLetter.of("learn", fault.reason, detail, source, fault.value))
        if not named and fault.at not in self._lettered:
            self._lettered.add(fault.at)
            source = (self._config.topics.trajectories, *fault.at)
            self._letters.append(DeadLetter.of("learn", fault.reason, detail, source, fault.value))

    def _is_admitted(self, group: tuple[int, int]) -> bool:
        return 0 <= group[1] < self._admission.frontier.get(group[0], 0)

    # -------------------------------------------------------------- admission

    def _target(self) -> int:
        limits = self._config.learner
        return self._accounts.count + (1 + limits.max_staleness) * limits.groups_per_step

    def _admit(self) -> None:
        """Replaces what was dropped at once, in a transaction of its own."""
        moved = self._admission.advance(self._target())
        if moved or self._letters:
            self._commit([self._frontier()] if moved else [])

    def _frontier(self) -> AdmissionFrontier:
        frontier = dict(self._admission.frontier)
        return AdmissionFrontier(version=self.version, generation=self._generation, frontier=frontier)

    def _commit(self, records: list[Announcement]) -> None:
        self._committer.commit([*records, *self._letters])
        self._letters = []

    # ------------------------------------------------------------------- step

    def _step(self, plan: Plan) -> None:
        started = time.monotonic()
        figures = metrics.of_plan(plan, self._versions, self.steps_done)
        outcome = self._train(plan) if plan.arrivals else None
        trained_at = time.monotonic()
        applied = outcome is not None and outcome.applied
        weights = self._publish(self.steps_done + 1) if applied else None
        published_at = time.monotonic()
        if outcome:
            figures |= metrics.of_outcome(outcome)
        figures |= {
            "learning_rate": self._learning_rate(),
            "seconds_wait": self._waited_s,
            "seconds_train": trained_at - started,
            "seconds_publish": published_at - trained_at,
            "seconds_step": published_at - started + self._waited_s,
        }
        self._record(plan, applied, weights, figures)

    def _train(self, plan: Plan) -> Outcome:
        config = self._config.learner
        examples = to_examples([arrival.samples for arrival in plan.arrivals])
        tokens = max(1, sum(example.trained_tokens for example in examples))
        shares = share_out(examples, self._ranks.size, config.micro_batch_tokens)
        rate = self._learning_rate()
        self._ranks.broadcast(("train", None))
        return self._engine.train(self._ranks.scatter([Work(packs, tokens, rate) for packs in shares]))

    def _learning_rate(self) -> float:
        return learning_rate(self._config.learner, self.steps_done, self._config.learner.steps)

    def _publish(self, step: int) -> WeightVersion:
        version = self.version + 1
        probe = {"token_ids": self._probe, "logprobs": self._engine.probe(self._probe)}
        tensors = self._engine.state_dict()
        digest = self._weights.write(tensors, version=version, step=step, dtype=self._dtype, probe=probe)
        self.version = version
        return WeightVersion(
            version=version,
            step=step,
            generation=self._generation,
            manifest_sha256=digest,
            dtype=self._dtype,
            base_model=Path(self._config.model.path).name,
        )

    def _record(self, plan: Plan, applied: bool, weights: WeightVersion | None, figures: dict[str, float]) -> None:
        trained = tuple(arrival.trained() for arrival in plan.arrivals) if applied else ()
        lost = () if applied else tuple(arrival.dropped("nonfinite") for arrival in plan.arrivals)
        if lost:
            _log.error("gradient not finite on some rank, step skipped on all", groups=len(lost))
        entry = StepEntry(
            generation=self._generation,
            step=self.steps_done + 1,
            version=self.version,
            trained=trained,
            dropped=plan.dropped + lost,
            metrics=figures,
        )
        self._admission.advance(self._target())
        self._commit([entry, *([weights] if weights else []), self._frontier()])
        self.steps_done += 1
        if weights:
            self._note(weights)
        else:
            self._versions.skipped.append(self.steps_done)
        self._show(entry)

    def _note(self, weights: WeightVersion) -> None:
        self._versions.steps[weights.version] = weights.step
        self._weights.prune(weights.version)

    def _show(self, entry: StepEntry) -> None:
        totals = {"step": entry.step, "version": entry.version, "generation": entry.generation}
        self._gauges.show({**totals, "groups_trained": len(entry.trained), **entry.metrics})
        rounded = {name: round(value, 5) for name, value in entry.metrics.items()}
        _log.info("step", **totals, trained=len(entry.trained), dropped=len(entry.dropped), **rounded)

    # ------------------------------------------------------------- checkpoint

    def _maybe_checkpoint(self) -> None:
        if self.steps_done % self._config.learner.checkpoint_every == 0:
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        if self.steps_done == (self._checkpoint.state.step if self._checkpoint else 0):
            return
        directory = self._checkpoints.new_directory(self._generation, self.steps_done)
        self._ranks.broadcast(("save", directory))
        self._engine.save(directory)
        self._ranks.barrier()
        parent = self._checkpoint.manifest_sha256 if self._checkpoint else None
        self._checkpoint = self._checkpoints.finish(directory, self._state(), parent)
        self._committer.commit([self._checkpoint.entry()])
        self._checkpoints.prune()
        _log.info("checkpoint", step=self.steps_done, directory=str(directory))

    def _state(self) -> State:
        positions = self._planner.positions(self._stream.positions())
        self._accounts.forget_below(positions)
        return State(
            generation=self._generation,
            step=self.steps_done,
            version=self.version,
            fingerprint=self._fingerprint(),
            config_sha256=_sha256(self._config.model_dump_json().encode()),
            topic_ids=self._topic_ids,
            positions={str(partition): offset for partition, offset in positions.items()},
            letters_position=self._stream.letters_position(),
            accounts=self._accounts.dump(),
            frontier={str(partition): offset for partition, offset in self._admission.frontier.items()},
            admitted=self._admission.admitted,
            drops=[drop.model_dump(mode="json") for drop in self._planner.drops],
        )

    def close(self) -> None:
        """Closes all connections. The other ranks of a learner that failed notice that it is gone."""
        for name in ("_stream", "_admission", "_committer"):
            if hasattr(self, name):
                getattr(self, name).close()


def _find_topics(config: RunConfig) -> dict[str, str]:
    topics = config.topics
    consumer = open_consumer(config)
    names = (topics.prompts, topics.trajectories, topics.dead_letters, topics.weights, topics.admission, topics.ledger)
    try:
        for name in names:
            partitions_of(consumer, name)
    finally:
        consumer.close()
    return topic_ids(config, names)


def _entry(record: Any) -> Any:
    try:
        return decode_entry(record.value)
    except RecordError as error:
        raise StateError(f"{record.topic} offset {record.offset} is not a ledger entry: {error}") from error


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()
