"""How a learner starts: from whatever earlier ones left to its first announcement.

    fence older learners → read the ledger → newest verified checkpoint, or the model as it is
    → seek to where that left off → announce its weights under a new generation and version

The result is a :class:`Standing`: where the learner stands. The loop of :mod:`trainers.learn` moves it on.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from schemas import traces
from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import StateError
from schemas.ledger import AdoptEntry, DroppedGroup, Position, Settings, StartEntry, StepEntry
from schemas.weights import WeightVersion
from trainers.accounts import Accounts, Versions
from trainers.admission import Admission
from trainers.checkpoint import Checkpoint, CheckpointStore, State
from trainers.commit import Announcement, Committer
from trainers.intake import Intake
from trainers.log import open_consumer, partitions_of, read_topic, topic_ids
from trainers.outbox import Outbox
from trainers.planner import Planner
from trainers.precision import fastest_dtype
from trainers.publish import WeightStore
from trainers.ranks import Ranks
from trainers.restart import History, read_history
from trainers.step_trace import StepTrace
from trainers.stream import Stream
from trainers.updates import Updates, numerics

_log = structlog.get_logger(__name__)

_FIRST_PROMPTS_S: Final = 0.5
"""How long the first admission waits for prompts; later ones are admitted as they come."""


@dataclass(slots=True)
class Standing:
    """A learner between two steps, with all that it works with."""

    config: RunConfig
    history: History
    """The ledger before this start."""
    generation: int
    topic_ids: dict[str, str]
    committer: Committer
    outbox: Outbox
    """Whose thread alone uses the committer, and writes to the weight store."""
    checkpoints: CheckpointStore
    weights: WeightStore
    updates: Updates
    planner: Planner
    stream: Stream
    admission: Admission
    intake: Intake
    checkpoint: Checkpoint | None
    """The newest one."""
    to_redo: list[StepEntry]
    """Steps of the dead line that are done again, in their order."""
    steps_done: int
    """Along the surviving line."""
    version: int
    """The highest weight version that was used."""
    skips: int = 0
    """How many of the last steps in a row had a gradient that was not finite; no checkpoint lies among them."""
    announced: WeightVersion = field(init=False)
    """The newest announcement."""

    @property
    def target(self) -> int:
        """How many prompts may be admitted now."""
        under_way = (1 + self.planner.max_staleness) * self.planner.groups_per_step
        return self.planner.accounts.released + under_way

    def frontier(self) -> AdmissionFrontier:
        """What is admitted, to be announced."""
        frontier = dict(self.admission.frontier)
        return AdmissionFrontier(version=self.version, generation=self.generation, frontier=frontier)

    def publish(self, step: int, *, as_files: bool = False) -> WeightVersion:
        """Publishes the weights as the next version, to be announced: they have seen ``step`` steps."""
        return self.outbox.run(self._writing(step, as_files=as_files))

    def _writing(self, step: int, *, as_files: bool = False) -> Callable[[], WeightVersion]:
        """What writes the weights as the next version, on any thread, as long as they do not change."""
        version = self.version + 1
        write = self.updates.prepare(self.weights, version, step, as_files=as_files)
        self.version = version

        def writing() -> WeightVersion:
            return WeightVersion(
                version=version,
                step=step,
                generation=self.generation,
                manifest_sha256=write(),
                dtype=self.updates.dtype,
                base_model=Path(self.config.model.path).name,
            )

        return writing

    def commit(self, records: list[Announcement]) -> None:
        """Commits records, and the dead letters that have come up, in one transaction."""
        self.outbox.run(partial(self.committer.commit, [*records, *self._take_letters()]))
        self._note(records)

    def _take_letters(self) -> list[DeadLetter]:
        letters, self.intake.letters = self.intake.letters, []
        return letters

    def publish_step(self, entry: StepEntry, trace: StepTrace, note: Callable[[StepEntry], None]) -> None:
        """Publishes the weights after a step and commits all of it in one transaction, beside what comes next.

        The weights must not change, and the step counts as trained ahead of its commit, until :meth:`settle`.

        Args:
            entry: of the step; the seconds that publishing took are added.
            trace: of the step; it ends with the commit.
            note: takes the entry when it is committed.
        """
        writing = self._writing(entry.step)
        last: list[Announcement] = [self.frontier(), *self._take_letters()]

        def job() -> list[Announcement]:
            started = time.monotonic()
            with traces.spanning(traces.below(trace.context), "publish", version=entry.version) as publish:
                announced = writing()
            figures = entry.metrics | {"seconds_publish": time.monotonic() - started}
            records: list[Announcement] = [entry.model_copy(update={"metrics": figures}), announced, *last]
            with traces.spanning(traces.below(trace.context), "commit"):
                self.committer.commit(records, publish.context)
            trace.end(entry)
            return records

        def committed(records: list[Announcement]) -> None:
            self._note(records)
            note(next(record for record in records if isinstance(record, StepEntry)))

        self.outbox.put(job, committed)

    def settle(self, *, wait: bool = True) -> bool:
        """Takes note of the last step's commit, see :meth:`trainers.outbox.Outbox.settle`.

        Raises:
            UserError: writing or committing failed.
        """
        return self.outbox.settle(wait=wait)

    def _note(self, records: list[Announcement]) -> None:
        for record in records:
            if isinstance(record, WeightVersion):
                self.announced = record
                self.planner.versions.steps[record.version] = record.step
                self.planner.versions.generations[record.version] = record.generation
                self.outbox.chore(partial(self.weights.prune, record.version))
            elif isinstance(record, StartEntry | AdoptEntry):
                self.planner.versions.adopted.add(record)


def start(config: RunConfig, ranks: Ranks, opened: ExitStack) -> Standing:
    """Starts on rank 0; connections are closed with ``opened``.

    Raises:
        UserError: what the user can mend, in words.
        StateError: what earlier learners left does not fit together.
    """
    topics = _find_topics(config)
    committer = opened.enter_context(closing(Committer(config)))  # from here on no older learner can write
    history = read_history(config)
    checkpoints = CheckpointStore(Path(config.learner.checkpoint_root), config.learner.keep_checkpoints)
    weights = opened.enter_context(closing(WeightStore(config.weights)))
    outbox = opened.enter_context(closing(Outbox()))  # closed first: it uses both
    diverged = len(history.skips()) >= config.learner.max_skips
    checkpoint = checkpoints.newest_verified(history, before=_last_good(history) if diverged else None)
    checkpoints.sweep()
    dtype = fastest_dtype() if config.model.dtype == "auto" else config.model.dtype
    updates = Updates(config, dtype, ranks, checkpoint)
    state = checkpoint.state if checkpoint else None
    _require_same_topics(config, state, topics)
    planner = _restore_planner(config, state, history)
    later = history.steps_after(state.step if state else 0)
    gives_up, to_redo = (later, []) if diverged else ([], later)
    for entry in gives_up:
        planner.give_up(entry)
    stream = opened.enter_context(closing(_open_stream(config, state)))
    admission = opened.enter_context(closing(_open_admission(config, state, planner.accounts)))
    intake = Intake(config, planner, admission, updates.vocabulary)
    for letter in stream.letters_so_far():
        intake.take(letter)
    standing = Standing(
        config=config,
        history=history,
        generation=history.generation + 1,
        topic_ids=topics,
        committer=committer,
        outbox=outbox,
        checkpoints=checkpoints,
        weights=weights,
        updates=updates,
        planner=planner,
        stream=stream,
        admission=admission,
        intake=intake,
        checkpoint=checkpoint,
        to_redo=to_redo,
        steps_done=state.step if state else 0,
        version=max(planner.versions.newest, weights.newest(), state.version if state else 0),
    )
    _announce(standing, ranks, gives_up=tuple(entry.step for entry in gives_up))
    return standing


def _last_good(history: History) -> int:
    """The last step that changed weights: what it led to gave no finite gradient, so only older ones are good.

    Raises:
        StateError: there is no such step.
    """
    step = history.last_trained()
    if not step:
        raise StateError(
            f"the gradients of the first {len(history.skips())} steps were not finite, so the model cannot be trained "
            "as it is: look at model.dtype, the objective and the rewards, and start a run of another name"
        )
    _log.error("gradients were not finite any more, going back", to_before_step=step)
    return step


def _find_topics(config: RunConfig) -> dict[str, str]:
    topics = config.topics
    consumer = open_consumer(config)
    names = (
        topics.prompts, topics.trajectories, topics.pending, topics.dead_letters, topics.weights, topics.admission,
        topics.ledger,
    )  # fmt: skip
    try:
        for name in names:
            partitions_of(consumer, name)
    finally:
        consumer.close()
    return topic_ids(config, names)


def _require_same_topics(config: RunConfig, state: State | None, topics: dict[str, str]) -> None:
    if state and any(topics.get(name) != known for name, known in state.topic_ids.items()):
        raise StateError(
            f"the topics of run {config.name!r} were deleted and made again since the checkpoint of "
            f"step {state.step}; start a run of another name"
        )


def _restore_planner(config: RunConfig, state: State | None, history: History) -> Planner:
    accounts = Accounts.restore(state.accounts) if state else Accounts()
    versions = Versions(skipped=history.skipped_steps(state.step if state else 0))
    for record in read_topic(config, config.topics.weights):
        announced = WeightVersion.decode(record.value)
        versions.steps[announced.version] = announced.step
        versions.generations[announced.version] = announced.generation
    for entry in history.entries:
        versions.adopted.add(entry)
    limits = config.learner
    planner = Planner(
        _groups_per_step(config, state),
        limits.max_staleness,
        accounts,
        versions,
        max_token_staleness=limits.max_token_staleness,
        needs_variance=limits.objective.recipe.needs_variance,
        max_feedback_staleness=limits.max_feedback_staleness,
        max_rater_share=limits.max_rater_share,
    )
    planner.drops = [DroppedGroup.model_validate(drop) for drop in (state.drops if state else [])]
    return planner


def _groups_per_step(config: RunConfig, state: State | None) -> int:
    """As configured, or fewer if a federation asked for that before the checkpoint."""
    most, known = config.learner.groups_per_step, state.federation if state else None
    asked = known["groups_per_step"] if known and known["federation"] == config.federation.name else None
    return min(most, asked or most)


def _open_stream(config: RunConfig, state: State | None) -> Stream:
    if state is None:
        return Stream(config, None, None, pending={})
    positions, pending = (
        {int(partition): offset for partition, offset in known.items()}
        for known in (state.positions, state.pending_positions)
    )
    return Stream(config, positions, state.letters_position, pending)


def _open_admission(config: RunConfig, state: State | None, accounts: Accounts) -> Admission:
    newest: dict[int, int] = {}
    for record in read_topic(config, config.topics.admission):
        newest = AdmissionFrontier.decode(record.value).frontier
    consumer = open_consumer(config)
    prompts = partitions_of(consumer, config.topics.prompts)
    admission = Admission(consumer, prompts, accounts.skip)
    counted = {int(partition): offset for partition, offset in state.frontier.items()} if state else {}
    admission.recount(counted, state.admitted if state else 0, newest)
    return admission


def _announce(standing: Standing, ranks: Ranks, gives_up: tuple[int, ...]) -> None:
    checkpoint, limits = standing.checkpoint, standing.config.learner
    position = checkpoint.state.at if checkpoint else None
    if position is None and standing.generation > 1:
        position = Position(generation=standing.generation - 1, step=0)
    entry = StartEntry(
        generation=standing.generation,
        continues=position,
        gives_up=gives_up,
        settings=Settings(
            max_staleness=limits.max_staleness,
            groups_per_step=limits.groups_per_step,
            max_token_staleness=limits.max_token_staleness,
            max_feedback_staleness=limits.max_feedback_staleness,
        ),
        numerics=numerics(ranks),
    )
    recorded = {each.manifest_sha256 for each in standing.history.checkpoints()}
    late = [checkpoint.entry()] if checkpoint and checkpoint.manifest_sha256 not in recorded else []
    weights = standing.publish(standing.steps_done)
    if not _awaits_global(standing):
        standing.admission.advance(standing.target, _FIRST_PROMPTS_S)
    standing.commit([*late, entry, weights, standing.frontier()])
    _log.info("started", generation=standing.generation, step=standing.steps_done, version=standing.version)


def _awaits_global(standing: Standing) -> bool:
    """Whether other weights come before the first step: what this model answered would only be too old then."""
    known = standing.checkpoint.state.federation if standing.checkpoint else None
    site = standing.config.federation
    return site.is_site and (known is None or known["federation"] != site.name)
