"""A learner as the site of a federation: what it does between its steps.

    order ──► adopt a global version ──► steps of the run's own ──► due ──► contribute ──► wait for the next
              ledger: adopt + weights      counted                  checkpoint, files,
              + admission, one transaction                          ledger: update, announced

What makes it safe to end anywhere: the checkpoint is written before the update, and says that the update is due. A
learner that continues from it makes the same files again, byte for byte, and announces what the ledger has of it; the
coordinator merges one number of one site once. Only then is a global version adopted, so no step is part of two
updates. Where the newest checkpoint cannot be used and an older one knows less than was announced, the steps in
between are done again for the ledger's sake, and then a global version replaces what they made.

While the broker or the store of the federation is away, the learner pauses and says so.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import structlog
import torch

from schemas.crash_points import crash_point
from schemas.errors import ConfigError, StateError
from schemas.federation import Codec, Order, RoundOrder, Site, SiteUpdate
from schemas.ledger import AdoptEntry, StepEntry, UpdateEntry
from schemas.weights import WeightVersion
from trainers.federation import codecs, updates
from trainers.federation.away import is_away
from trainers.federation.copies import Copies, read_tensors
from trainers.federation.layout import Row
from trainers.federation.link import Link
from trainers.masks import trained_mask
from trainers.planner import Plan
from trainers.start import Standing

_log = structlog.get_logger(__name__)
_POLL_S: Final = 0.1
_PATIENCE_S: Final = 30.0
"""How often the log repeats what is waited for."""
_SMOOTHING: Final = 0.3
"""Weight of the newest step in the tokens a second that the site declares."""
RESIDUAL_NAME: Final = "residual.safetensors"
_Result = TypeVar("_Result")
Residual = dict[str, Row] | None
"""What a codec left out of a site's last update; null for nothing."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a site has done since it adopted a global version; part of every checkpoint. All values are JSON."""

    federation: str
    """Its name."""
    base_version: int
    """The global version."""
    base_sha256: str
    """Of its manifest."""
    since: int
    """Steps that the run had done before."""
    sequence: int
    """The number that its update will have."""
    target: int | None = None
    """Steps after which the update is due; null as long as nobody has asked for one."""
    round: int | None = None
    """Which round asked; null in an asynchronous federation."""
    groups_per_step: int | None = None
    """Of its order; null for what the site has configured."""
    steps: int = 0
    """Those that changed weights and are part of the update."""
    samples: int = 0
    tokens: int = 0
    """Of the loss."""
    samples_before: int = 0
    """Trained by the run until then."""
    phase: Literal["open", "due", "handed"] = "open"
    """``due``: the update is complete, no further step is part of it. ``handed``: the federation's broker has it."""

    @property
    def is_full(self) -> bool:
        """Whether it has all the steps that were asked for."""
        return self.target is not None and self.steps >= self.target


class Member:
    """The site's side of a federation, on rank 0.

    Args:
        standing: of the learner.
        attend: lets the learner do what cannot wait, without a step.
        save: writes a checkpoint, even if there is one of this step.
        stop: ends all waiting.
    """

    def __init__(
        self, standing: Standing, attend: Callable[[], object], save: Callable[[], None], stop: threading.Event
    ) -> None:
        self._at, self._attend, self._save, self._stop = standing, attend, save, stop
        self._config = standing.config.federation
        learner = standing.config.learner
        self._copies = Copies(self._config.store, Path(learner.checkpoint_root), learner.keep_checkpoints + 2)
        self._key = self._config.signing_key()
        self._tokens_s: float | None = None
        self._residual: Residual = None
        self._resume()
        self._link = Link(self._config, self._describe)

    # ------------------------------------------------------------------- start

    def _resume(self) -> None:
        checkpoint, history = self._at.checkpoint, self._at.history
        known = checkpoint.state.federation if checkpoint else None
        is_ours = known is not None and known["federation"] == self._config.name
        self.contribution = Contribution(**known) if known and is_ours else None
        own = (entry for entry in history.updates() if entry.federation == self._config.name)
        self._recorded = {entry.update.sequence: entry for entry in own if entry.update.site == self._config.site}
        last = max(self._recorded, default=0)
        self._next = max(last + 1, self.contribution.sequence if self.contribution else 1)
        self._is_behind = last > 0 and not self._fits(last)
        if self._is_behind:
            _log.error("the checkpoint knows less than was handed to the federation, going on from a global version",
                       handed_over=last, checkpoint=self.contribution and self.contribution.sequence)  # fmt: skip
        elif checkpoint and self.contribution:
            self._residual = _read_residual(checkpoint.directory)

    def _fits(self, last: int) -> bool:
        """Whether the checkpoint knows of the newest update that was written."""
        known = self.contribution
        return known is not None and (known.sequence == last + 1 or (known.sequence == last and known.phase != "open"))

    def pull(self) -> None:
        """Is pulled towards the global version that the checkpoint goes on from, if the configuration says so."""
        known = self.contribution
        if known is None or self._is_behind or not self._config.proximal_mu:
            return
        version, digest = known.base_version, known.base_sha256
        base = self._patiently("a global version", lambda: self._copies.fetch(version, digest), is_newest=version)
        if base:
            self._at.updates.anchor(base)
        elif not self._stop.is_set():
            self._give_up(known)

    # -------------------------------------------------------------------- loop

    def keep_up(self) -> bool:
        """Does what the federation asks for before the next step; False if the learner was told to end meanwhile."""
        self.finish()
        told_s = time.monotonic()
        while not self._stop.is_set():
            self._require_same_mode()
            if self._take_up() or self._may_train():
                return True
            if time.monotonic() - told_s > _PATIENCE_S:
                told_s = time.monotonic()
                self._tell()
            self._attend()
            self._link.wait(_POLL_S)
        return False

    def finish(self) -> None:
        """Contributes what is due."""
        known = self.contribution
        if known is None or self._is_behind:
            return
        if known.phase == "due" or (known.phase == "open" and known.is_full and not self._at.skips):
            self._contribute(known)

    @property
    def is_called(self) -> bool:
        """Whether an order came while it trains by itself."""
        found = None if self._is_at_work else self._link.heard.order_for(self._config.site)
        return found is not None and not self._has_answered(found[0])

    @property
    def is_behind(self) -> bool:
        """Whether an earlier learner handed over more than this one knows of: what it did is done again, uncounted."""
        return self._is_behind

    @property
    def _is_at_work(self) -> bool:
        """Whether the next step is part of an update."""
        known = self.contribution
        return known is not None and known.target is not None and known.phase == "open" and not self._is_behind

    def count(self, entry: StepEntry, plan: Plan) -> None:
        """Takes note of a step that was applied."""
        samples = [sample for arrival in plan.arrivals for sample in arrival.samples]
        tokens = sum(sum(trained_mask(each, plan.too_old)) for each in samples if each.reward is not None)
        seconds = entry.metrics.get("seconds_step", 0.0)
        if seconds:
            newest = tokens / seconds
            before = newest if self._tokens_s is None else self._tokens_s
            self._tokens_s = before + _SMOOTHING * (newest - before)
        known = self.contribution
        if self._is_at_work and known:
            self.contribution = replace(
                known, steps=known.steps + 1, samples=known.samples + len(samples), tokens=known.tokens + tokens
            )

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; null before the first global version."""
        return asdict(self.contribution) if self.contribution else None

    def save(self, directory: Path) -> None:
        """Adds to a checkpoint what does not fit into JSON."""
        if self._residual:
            _write_residual(directory, self._residual)

    def close(self) -> None:
        """Ends the line."""
        self._link.close()

    def _tell(self) -> None:
        known, newest = self.contribution, self._link.heard.newest
        fate = self._link.heard.fates.get(known.sequence) if known else None
        _log.warning("waiting for the federation", federation=self._config.name, broker=self._link.fault or "answers",
                     newest_version=newest and newest.version, base_version=known and known.base_version,
                     phase=known and known.phase, fate=fate)  # fmt: skip

    def _require_same_mode(self) -> None:
        start = self._link.heard.start
        if start and start.asynchronous != self._config.asynchronous:
            raise ConfigError(
                f"federation.asynchronous = {str(self._config.asynchronous).lower()}, but the coordinator of "
                f"{self._config.name!r} says {str(start.asynchronous).lower()}; write the same here"
            )

    # -------------------------------------------------------------- contribute

    def _contribute(self, known: Contribution) -> None:
        """Checkpoint, files, ledger, announcement; in this order, see the module."""
        self._at.settle()
        due = replace(known, phase="due")
        if known.phase == "open":
            self.contribution = due
            self._save()
        made = self._make(due)
        entry = self._recorded.get(due.sequence) or (self._record(due, made[0]) if made else None)
        if made is None or entry is None:
            return
        crash_point("update_recorded")
        if self._announce(entry.update):
            self._residual, self._next = made[1], due.sequence + 1
            self.contribution = replace(due, phase="handed")

    def _make(self, due: Contribution) -> tuple[SiteUpdate, Residual] | None:
        """Writes the files, of which the federation may have heard before; null if it cannot, or if told to end.

        Returns:
            The record, and what the codec left out.
        """
        version, digest = due.base_version, due.base_sha256
        base = self._patiently("a global version", lambda: self._copies.fetch(version, digest), is_newest=version)
        if base is None:
            if not self._stop.is_set():
                self._give_up(due)
            return None
        entry = self._recorded.get(due.sequence)
        about = entry.update if entry else self._describe_update(due)
        arrays, residual = self._encode(read_tensors(base), about.codec)
        record, *_ = updates.encoded(about, arrays)
        if entry and record.manifest_sha256 != about.manifest_sha256:
            return self._find_again(about)
        if due.sequence not in self._link.heard.fates:
            if self._patiently("an update", lambda: updates.write(self._config.store, about, arrays)) is None:
                return None
            crash_point("update_written")
        return record.signed(self._config.name, self._key), residual

    def _find_again(self, recorded: SiteUpdate) -> tuple[SiteUpdate, Residual] | None:
        """An update that cannot be made again, whose files may be there; what its codec left out is not known then.

        Raises:
            ConfigError: they are not.
        """
        sequence, codec = recorded.sequence, self._config.codec
        done = sequence in self._link.heard.fates
        if done or self._patiently("an update", lambda: updates.are_there(self._config.store, recorded)):
            _log.warning("the codec was changed, what it left out of the last update is dropped", sequence=sequence)
            return recorded, None
        if self._stop.is_set():
            return None
        raise ConfigError(
            f"the ledger has update {sequence} with codec {recorded.codec!r} and manifest "
            f"{recorded.manifest_sha256[:12]}, and comes out otherwise with federation.codec.name = {codec.name!r}, "
            f"keep_share = {codec.keep_share}; give federation.codec as it was, for one start"
        )

    def _give_up(self, due: Contribution) -> None:
        self._is_behind = True
        _log.error("the global version that an update is the difference to is gone, here and in the store: it is lost",
                   sequence=due.sequence, base_version=due.base_version)  # fmt: skip

    def _encode(self, base: Mapping[str, Row], name: Codec) -> tuple[codecs.Arrays, Residual]:
        codec, now = self._config.codec, self._at.updates.full_weights()
        difference = {name: tensor.numpy() - base[name] for name, tensor in sorted(now.items())}
        arrays, left = codecs.encode(name, difference, self._residual, keep_share=codec.keep_share)
        return arrays, left if codec.error_feedback and name != "full" else None

    def _record(self, due: Contribution, update: SiteUpdate) -> UpdateEntry:
        """The update in the run's own ledger: from here on its number means this and nothing else."""
        at = self._at
        entry = UpdateEntry(generation=at.generation, step=at.steps_done, since=due.since,
                            federation=self._config.name, update=update)  # fmt: skip
        at.commit([entry])
        self._recorded[due.sequence] = entry
        return entry

    def _announce(self, update: SiteUpdate) -> bool:
        """False if the learner was told to end before the broker had it."""
        self._link.hand_over(update)
        told_s = time.monotonic()
        while self._link.heard and not self._link.has_sent(update) and not self._stop.is_set():
            if time.monotonic() - told_s > _PATIENCE_S:
                told_s = time.monotonic()
                _log.warning("the federation's broker does not take the update", sequence=update.sequence,
                             reason=self._link.fault)  # fmt: skip
            self._attend()
            self._link.wait(_POLL_S)
        if self._link.has_sent(update):
            crash_point("update_announced")
            _log.info("update announced", federation=self._config.name, sequence=update.sequence, round=update.round,
                      base_version=update.base_version, steps=update.steps, samples=update.samples,
                      bytes=update.bytes)  # fmt: skip
        return self._link.has_sent(update)

    # ------------------------------------------------------------------- adopt

    def _take_up(self) -> bool:
        """Begins with what is to be done next, if it is known; True also if it was begun before."""
        if self._is_at_work:
            return True
        known = self.contribution
        newest = self._link.heard.newest
        if newest is None:
            return False
        if self._config.asynchronous:
            return self._begin(newest, Order(steps=self._config.steps), None)
        found = self._link.heard.order_for(self._config.site)
        if found is None or self._has_answered(found[0]):
            return (known is None or self._is_behind) and self._begin(newest, None, None)
        order, own = found
        return self._begin(newest, own, order.round)

    def _has_answered(self, order: RoundOrder) -> bool:
        """Whether another update from this global version counts for nothing: all do but those asked for again."""
        handed_over = (entry.update for entry in self._recorded.values())
        rounds = [each.round or 0 for each in handed_over if each.base_version == order.base_version]
        is_asked_again = self._config.site in order.again and order.round > max(rounds, default=0)
        return bool(rounds) and not is_asked_again

    def _may_train(self) -> bool:
        """Whether to train on by itself, uncounted, while others are at work."""
        heard, idle = self._link.heard, self._config.not_selected == "train"
        asked_others = heard.order is not None and heard.order_for(self._config.site) is None
        return idle and asked_others and self.contribution is not None and not self._config.asynchronous

    def _begin(self, newest: WeightVersion, order: Order | None, round_: int | None) -> bool:
        """True if there is something to train towards now."""
        known = self.contribution
        stands_at = (known.base_version, known.since, known.phase) if known and not self._is_behind else None
        if stands_at != (newest.version, self._at.steps_done, "open") and not self._adopt(newest):
            return False
        if order is None:
            return False
        assert self.contribution is not None
        self.contribution = replace(
            self.contribution, target=order.steps, round=round_, groups_per_step=order.groups_per_step
        )
        most = self._at.config.learner.groups_per_step
        self._at.planner.groups_per_step = min(most, order.groups_per_step or most)
        return True

    def _adopt(self, newest: WeightVersion) -> bool:
        """Goes on from a global version; False if the learner was told to end meanwhile."""
        version, digest = newest.version, newest.manifest_sha256
        directory = self._patiently("a global version", lambda: self._copies.fetch(version, digest), is_newest=version)
        if directory is None:
            return False
        at, known = self._at, self.contribution
        at.settle()
        if at.steps_done > (at.checkpoint.state.step if at.checkpoint else 0):
            self._save()  # whoever continues from a checkpoint of this step adopts anew: it has to be from before
        at.updates.adopt(directory, forget=not self._config.keep_optimizer)
        crash_point("before_adoption")
        weights = at.publish(at.steps_done)
        entry = AdoptEntry(generation=at.generation, step=at.steps_done, version=weights.version,
                           federation=self._config.name, global_version=version, manifest_sha256=digest)  # fmt: skip
        at.admission.advance(at.target)
        at.commit([entry, weights, at.frontier()])
        if self._is_behind:
            self._is_behind, self._residual = False, None
        self._next = max(self._next, 1 + max(self._link.heard.fates, default=0))  # of an earlier run of this name
        before = known.samples_before + known.samples if known else 0
        self.contribution = Contribution(
            self._config.name, version, digest, at.steps_done, self._next, samples_before=before
        )
        _log.info("global version adopted", federation=self._config.name, global_version=version,
                  version=weights.version, step=at.steps_done)  # fmt: skip
        return True

    # ------------------------------------------------------------------- other

    def _patiently(self, what: str, attempt: Callable[[], _Result], is_newest: int | None = None) -> _Result | None:
        """What an attempt gives once the store is there; null if the learner is told to end, or something newer came.

        Args:
            what: is read or written.
            attempt: raises StateError, or what :func:`is_away` knows, while it cannot.
            is_newest: the global version that it is about, if a newer one would do as well.
        """
        told_s = -_PATIENCE_S
        while not self._stop.is_set():
            try:
                return attempt()
            except Exception as error:
                if not (isinstance(error, StateError) or is_away(error)):
                    raise
                if time.monotonic() - told_s > _PATIENCE_S:
                    told_s = time.monotonic()
                    _log.warning("the federation's store does not have or take it, trying again", what=what,
                                 store=self._config.store, reason=str(error))  # fmt: skip
            newest = self._link.heard.newest
            if is_newest is not None and newest and newest.version > is_newest:
                return None
            self._attend()
            self._stop.wait(1.0)
        return None

    def _describe_update(self, due: Contribution) -> SiteUpdate:
        """What is known of an update before its files are written."""
        return SiteUpdate(
            site=self._config.site,
            sequence=due.sequence,
            round=due.round,
            base_version=due.base_version,
            samples=due.samples,
            tokens=due.tokens,
            steps=due.steps,
            codec=self._config.codec.name,
            bytes=0,
            manifest_sha256="0" * 64,
        )

    def _describe(self) -> Site:
        """A heartbeat; called by the line's thread."""
        known = self.contribution
        gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
        memory_bytes = gpu.total_memory if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Site(
            site=self._config.site,
            cores=len(os.sched_getaffinity(0)),
            gpu=gpu.name if gpu else "",
            memory_bytes=memory_bytes,
            link_bytes_s=self._config.link_bytes_s,
            tokens_s=self._tokens_s or None,
            samples=known.samples_before + known.samples if known else 0,
            base_version=known.base_version if known else 0,
        )


def _write_residual(directory: Path, residual: Mapping[str, Row]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(each) for name, each in residual.items()}, directory / RESIDUAL_NAME)


def _read_residual(directory: Path) -> Residual:
    from safetensors.numpy import load_file

    with suppress(FileNotFoundError):
        found: dict[str, Row] = load_file(directory / RESIDUAL_NAME)
        return found
    return None
