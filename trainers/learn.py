"""The learner: from whole groups on the trajectories topic to announced weight versions.

    trajectories → stream → planner → batch → losses → engine → publish → commit → weights

    start   from what earlier learners left to the first announcement: see trainers/start.py
    redo    the steps of the dead line, as the ledger says
    join    of a federation's site: see trainers/federation/site.py; asked before every step
    loop    wait for a plan → gradient → update → now and then a checkpoint
                          └─ beside: publish → commit of the step before (trainers/outbox.py)
    end     after ``learner.steps`` or a signal: a last checkpoint

Rank 0 is the :class:`Learner`: it plans, and it alone talks to Kafka. The other ranks do as they are
told (:func:`follow`). Everything that a step did becomes visible in one transaction, so whatever dies
in between, the log tells a consistent story; a step whose transaction did not commit never was. Weights
are written and the transaction sent while the next gradient is computed; no update is made, and no
checkpoint finished, before the step before it is committed.
"""

import math
import signal
import threading
import time
from collections import deque
from contextlib import ExitStack, closing
from typing import Final

import structlog

from schemas import traces
from schemas.config import RunConfig
from schemas.errors import DivergedError
from schemas.ledger import StepEntry
from schemas.manifests import sha256
from trainers import metrics
from trainers.checkpoint import State
from trainers.engine import Engine, Make
from trainers.federation.site import Member
from trainers.log import broker_errors
from trainers.optimizer import learning_rate
from trainers.planner import Arrival, Plan
from trainers.policy_gradient import PolicyGradient
from trainers.ranks import Ranks
from trainers.restart import is_skip
from trainers.start import Standing, start
from trainers.step_trace import StepTrace
from trainers.trackers import Trackers, open_trackers

_log = structlog.get_logger(__name__)

_POLL_S: Final = 0.1
"""How long the stream is waited for at a time: also how soon a signal is seen."""
_BUSY_POLL_S: Final = 0.01
"""The same while a step is being committed, whose admission everybody may be waiting for."""
_PATIENCE_S: Final = 30.0
"""After this long without a group, or with too many of the same raters, the learner says what it waits for and looks
whether it is its own fault."""


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
            traces.open_tracing(config.tracing, config.name, "learn")
            with broker_errors(config):
                lead(config, ranks, stop)
    finally:
        traces.close_tracing()
        ranks.leave()
    return 0


def lead(config: RunConfig, ranks: Ranks, stop: threading.Event) -> None:
    """The life of rank 0."""
    gauges = metrics.Gauges(config.learner.metrics_port, config.learner.metrics_host)
    with ExitStack() as opened:
        trackers = opened.enter_context(closing(open_trackers(config)))
        learner = opened.enter_context(closing(Learner(start(config, ranks, opened), gauges, stop, trackers)))
        learner.redo()
        learner.loop()
        ranks.broadcast(("end", None))


def follow(config: RunConfig, ranks: Ranks, make: Make = PolicyGradient) -> None:
    """The life of every other rank: the same collective calls in the same order."""
    dtype, saved = ranks.broadcast()
    engine = Engine(config, dtype, ranks, saved, make)
    while True:
        order, argument = ranks.broadcast()
        if order == "train":
            engine.train(ranks.scatter())
        elif order == "measure":
            engine.measure(ranks.scatter())
        elif order == "save":
            engine.save(argument)
            ranks.barrier()
        elif order == "check":
            engine.check(argument)
        elif order == "masters":
            deque(engine.full_weights(), maxlen=0)
        elif order == "adopt":
            engine.adopt(argument[0], forget=argument[1])
        elif order == "anchor":
            engine.anchor(argument)
        elif order == "gather":
            engine.state_dict()
            engine.probe(argument)
        else:
            return


class Learner:
    """Rank 0, from where it stands after its start."""

    def __init__(self, standing: Standing, gauges: metrics.Gauges, stop: threading.Event, trackers: Trackers) -> None:
        self._at, self._gauges, self._stop, self._trackers = standing, gauges, stop, trackers
        self._config = standing.config
        self._planner, self._admission = standing.planner, standing.admission
        self._waited_s = self._held_s = 0.0
        self._is_redoing = False
        self._member = self._join() if self._config.federation.is_site else None

    def _join(self) -> Member:
        return Member(self._at, self._attend, lambda: self._save_checkpoint(again=True), self._stop)

    def close(self) -> None:
        """Ends what runs beside it."""
        if self._member:
            self._member.close()

    def redo(self) -> None:
        """Does the steps of the dead line again, up to the last one that the ledger knows."""
        self._is_redoing = bool(self._at.to_redo)
        if self._member:
            self._member.pull()
        for entry in self._at.to_redo:
            if self._stop.is_set() or self._at.steps_done >= self._config.learner.steps:
                return
            if self._member and not self._member.is_behind and not self._member.keep_up():
                return
            _log.info("redo", step=entry.step, of_generation=entry.generation)
            self._step(self._planner.again(entry, self._at.stream.groups.fetch(entry)))
            self._maybe_checkpoint()
        self._is_redoing = False

    # ------------------------------------------------------------------- loop

    def loop(self) -> None:
        """Steps until all are done or a signal comes, then a last checkpoint."""
        while self._at.steps_done < self._config.learner.steps:
            is_told = self._member is None or self._member.keep_up()
            plan = self._wait_for_plan() if is_told else None
            if plan is None and not self._stop.is_set():
                continue  # the federation asks for something else
            if plan is None:
                _log.info("signal received, ending after a checkpoint", step=self._at.steps_done)
                break
            self._step(plan)
            self._maybe_checkpoint()
        if self._member:
            self._member.finish()
        self._at.settle()
        self._save_checkpoint()

    def _wait_for_plan(self) -> Plan | None:
        started = heard = time.monotonic()
        patience_s = _PATIENCE_S
        while not self._stop.is_set() and not (self._member and self._member.is_called):
            if self._attend() and not self._planner.is_held_up():
                heard, patience_s = time.monotonic(), _PATIENCE_S
            self._gauges.wait(len(self._planner.waiting))
            if self._planner.is_ready():
                self._waited_s = time.monotonic() - started
                return self._planner.take(self._at.steps_done)
            if time.monotonic() - heard > patience_s:
                self._look_for_fault()
                patience_s *= 2  # large weights are not read again and again
        return None

    def _attend(self) -> bool:
        """Takes what has come, and admits what may be; True if anything has come.

        Nothing is taken while steps are done again: what the ledger says of their groups is not known yet.
        """
        if self._is_redoing:
            return False
        heard = self._listen()
        self._planner.drop_stale(self._at.steps_done)
        if self._at.settle(wait=False):
            self._deliver_as_files()
            self._admit()
        return heard

    def _listen(self) -> bool:
        """Takes what has come; True if anything has."""
        heard = False
        for event in self._at.stream.poll(self._patience_for_events()):
            if isinstance(event, Arrival) and not self._planner.versions.know_all(event.versions()):
                self._at.settle()  # its weights may have been announced a moment ago
            self._at.intake.take(event)
            heard = True
        return heard

    def _patience_for_events(self) -> float:
        if self._planner.is_ready():
            return 0.0
        return _POLL_S if self._at.settle(wait=False) else _BUSY_POLL_S

    def _admit(self) -> None:
        """Replaces what was dropped at once, in a transaction of its own."""
        moved = self._admission.advance(self._at.target)
        if moved or self._at.intake.letters:
            self._at.commit([self._at.frontier()] if moved else [])

    def _look_for_fault(self) -> None:
        """Publishes the weights again if nobody can answer because they cannot be loaded any more."""
        self._at.settle()
        waiting, accounts = self._planner.waiting, self._planner.accounts
        _log.warning("waiting for groups", have=len(waiting), need=self._config.learner.groups_per_step,
                     over_share=self._planner.over_share(), admitted=self._admission.admitted,
                     finished=accounts.count, parked=len(accounts.parked))  # fmt: skip
        answered = accounts.parked.union(group for group in waiting if group.is_prompt)
        unanswered = self._admission.admitted > accounts.count + len(answered)
        fault = self._at.weights.fault(self._at.announced) if unanswered else None
        if fault:
            self._publish_again(fault)

    def _deliver_as_files(self) -> None:
        """Weights that could not be sent to an engine go through the store."""
        if fault := self._at.weights.undelivered(self._at.announced):
            self._publish_again(fault)

    def _publish_again(self, fault: str) -> None:
        _log.error("announced weights cannot be loaded, publishing them again", reason=fault,
                   version=self._at.version, as_version=self._at.version + 1)  # fmt: skip
        self._at.commit([self._at.publish(self._at.steps_done, as_files=True), self._at.frontier()])

    # ------------------------------------------------------------------- step

    def _step(self, plan: Plan) -> None:
        started, self._held_s = time.monotonic(), 0.0
        self._gauges.train()
        figures = metrics.of_plan(plan, self._planner.versions, self._at.steps_done)
        rate = learning_rate(self._config.learner, self._at.steps_done, self._config.learner.steps)
        trace = StepTrace.begin(plan.arrivals)
        with traces.spanning(traces.below(trace.context), "train"):
            outcome = self._at.updates.train(plan, rate, self._settle) if plan.arrivals else None
        self._settle()  # where there was nothing to train
        passed_s = time.monotonic() - started
        figures |= metrics.of_outcome(outcome) if outcome else {}
        figures |= {
            "prompts_parked": len(self._planner.accounts.parked),
            "learning_rate": rate,
            "seconds_wait": self._waited_s,
            "seconds_held": self._held_s,
            "seconds_train": passed_s - self._held_s,
            "seconds_step": passed_s + self._waited_s,
        }
        if self._member and math.isfinite(self._at.updates.drift):
            figures["drift"] = self._at.updates.drift
        self._record(plan, figures, trace, applied=outcome is not None and outcome.applied)

    def _settle(self) -> None:
        """No step is made before the one before it is committed: also where that is what takes longest."""
        started = time.monotonic()
        self._at.settle()
        self._held_s += time.monotonic() - started

    def _record(self, plan: Plan, figures: dict[str, float], trace: StepTrace, *, applied: bool) -> None:
        trained = tuple(arrival.trained() for arrival in plan.arrivals) if applied else ()
        lost = () if applied else tuple(arrival.dropped("nonfinite") for arrival in plan.arrivals)
        if lost:
            _log.error("gradient not finite on some rank, step skipped on all", groups=len(lost))
        self._at.steps_done += 1
        entry = StepEntry(
            generation=self._at.generation,
            step=self._at.steps_done,
            version=self._at.version + applied,
            trained=trained,
            dropped=plan.dropped + lost,
            too_old=plan.too_old if applied else (),
            metrics=figures,
        )
        self._admission.advance(self._at.target)
        if applied:
            if self._member:
                self._member.count(entry, plan)
            self._at.skips = 0
            self._at.publish_step(entry, trace, self._show)
        else:
            self._planner.versions.skipped.append(self._at.steps_done)
            self._at.commit([entry, self._at.frontier()])
            trace.end(entry)
            self._show(entry)
            self._require_finite(entry)

    def _require_finite(self, entry: StepEntry) -> None:
        self._at.skips += is_skip(entry)
        if self._at.skips >= self._config.learner.max_skips:
            raise DivergedError(
                f"the gradients of {self._at.skips} steps in a row were not finite (learner.max_skips); the next start "
                "goes back to an older checkpoint and leaves out what was trained since"
            )

    def _show(self, entry: StepEntry) -> None:
        totals = {"step": entry.step, "version": entry.version, "generation": entry.generation}
        self._gauges.show({**totals, "groups_trained": len(entry.trained), **entry.metrics})
        self._gauges.drop(group.reason for group in entry.dropped)
        self._trackers.log(entry)
        rounded = {name: round(value, 5) for name, value in entry.metrics.items()}
        _log.info("step", **totals, trained=len(entry.trained), dropped=len(entry.dropped), **rounded)

    # ------------------------------------------------------------- checkpoint

    def _maybe_checkpoint(self) -> None:
        if self._at.steps_done % self._config.learner.checkpoint_every == 0:
            self._save_checkpoint()

    def _save_checkpoint(self, *, again: bool = False) -> None:
        """With ``again`` also where there is one of this step."""
        at, before = self._at, self._at.checkpoint
        if at.skips or (not again and at.steps_done == (before.state.step if before else 0)):
            return  # weights after which no gradient was finite are nothing to go back to
        with at.checkpoints.new_directory(at.generation, at.steps_done) as directory:
            at.updates.save(directory)
            if self._member:
                self._member.save(directory)
            at.settle()  # what a checkpoint says is committed
            parent = before.manifest_sha256 if before else None
            at.checkpoint = at.checkpoints.finish(directory, self._state(), parent)
        at.commit([at.checkpoint.entry()])
        at.checkpoints.prune()
        _log.info("checkpoint", step=at.steps_done, directory=str(directory))

    def _state(self) -> State:
        at = self._at
        positions = self._planner.positions(at.stream.positions())
        self._planner.accounts.forget_below(positions)
        return State(
            generation=at.generation,
            step=at.steps_done,
            version=at.version,
            fingerprint=at.updates.fingerprint,
            config_sha256=sha256(self._config.model_dump_json().encode()),
            topic_ids=at.topic_ids,
            positions={str(partition): offset for partition, offset in positions.items()},
            letters_position=at.stream.letters_position(),
            accounts=self._planner.accounts.dump(),
            frontier={str(partition): offset for partition, offset in self._admission.frontier.items()},
            admitted=self._admission.admitted,
            drops=[drop.model_dump(mode="json") for drop in self._planner.drops],
            baselines=at.updates.advantages.baselines,
            pending_positions={str(partition): offset for partition, offset in at.stream.pending_positions().items()},
            federation=self._member.state() if self._member else None,
        )
