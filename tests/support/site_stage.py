"""One site of a federation before an instrument that plays the coordinator, and what is asked of both afterwards."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from schemas.config import validate
from schemas.crash_points import VARIABLE, arm
from schemas.ledger import UpdateEntry
from schemas.weights import version_path
from tests.support.federation import Federation
from tests.support.learners import Nursery
from tests.support.trajectories import Rollouts, read_ledger, verdict_of, wait_until, write_prompts


@dataclass
class Stage:
    """One site before the federation."""

    make_config: Callable
    model_dir: Path
    federation: Federation
    nursery: Nursery
    directory: Path
    may_answer: threading.Event

    def configure(self, federation=None, **learner):
        """A run's configuration; ``federation`` changes its section of that name."""
        config = self.make_config(**{"checkpoint_every": 100, "max_staleness": 1, **learner})
        section = self.federation.section("north") | (federation or {})
        return validate(config.model_dump() | {"federation": section}, "test")

    @contextmanager
    def playing(self, config, room=None):
        """Prompts, answers as long as :attr:`may_answer` is set, and a learner, ended with the test."""
        write_prompts(config, 60)
        with Rollouts(config, self.model_dir, reward=self._reward):
            self.start(config, room)
            yield

    def _reward(self, _, index):
        self.may_answer.wait(60)
        return float(index % 2)

    def start(self, config, room=None):
        self.nursery.start(config, self.directory, **({VARIABLE: str(room)} if room else {}))

    def arm(self, point):
        """A room in which the point is armed."""
        room = self.directory / "room"
        room.mkdir(exist_ok=True)
        arm(room, point)
        return room

    def ends(self, code=0):
        """Waits for the learner's end."""
        assert self.nursery.wait() == code, self.nursery.said()

    def wait_for_updates(self, number):
        """Returns once so many are announced; a learner that ended is told of."""
        wait_until(lambda: len(self.federation.updates()) >= number or self._has_ended())

    def _has_ended(self):
        return self.nursery.has_ended() and pytest.fail(self.nursery.said())


def updates_of(config):
    return [entry for entry in read_ledger(config) if isinstance(entry, UpdateEntry)]


def local_weights(config, version):
    return load_file(Path(version_path(config.weights.root, version)) / "model.safetensors")


class Merging(threading.Thread):
    """A coordinator that merges what has come and asks again, until so many rounds are merged."""

    def __init__(self, federation, site="north", *, steps=2, rounds=2):
        super().__init__(daemon=True)
        self.federation, self.site, self.steps, self.rounds = federation, site, steps, rounds
        self._ended = threading.Event()

    def __enter__(self):
        self.federation.order(self.site, steps=self.steps)
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join(60)

    def run(self):
        merged = 0
        while merged < self.rounds and not self._ended.wait(0.2):
            if len(self.federation.updates()) > len(self.federation.merged):
                self.federation.merge()
                self.federation.order(self.site, steps=self.steps)
                merged += 1


def assert_each_step_is_in_one_update(config, federation):
    """Whatever was killed: every update of the ledger was announced, and no other; each has its own steps."""
    recorded = {entry.update.name: entry.update for entry in updates_of(config)}
    assert federation.updates() == recorded
    assert all(update == recorded[update.name] for update in federation.announced()), "announced with another content"
    for update in recorded.values():
        federation.numbers(update)  # the files are those that were announced
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults
    spans = sorted((entry.since, entry.step) for entry in updates_of(config))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    return verdict
