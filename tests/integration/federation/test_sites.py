"""A learner as a federation's site, on a real broker; tests/support/federation.py plays the coordinator."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.audit import audit
from pipelines.local.broker import Broker
from pipelines.log import RunReader
from schemas.config import validate
from schemas.crash_points import SITE_POINTS, VARIABLE, arm, hits
from schemas.federation import update_path
from schemas.ledger import UpdateEntry, surviving_adoptions, surviving_steps
from schemas.lora import LoraConfig, adapter_shapes
from schemas.records import now
from schemas.weights import version_path
from tests.support.federation import Federation
from tests.support.learners import Nursery
from tests.support.trajectories import Rollouts, read_ledger, wait_until, write_prompts

logging.getLogger("kafka").setLevel(logging.ERROR)


@pytest.fixture
def federation(broker, tmp_path, model_dir):
    """A federation with global version 1, the tiny model."""
    with closing(Federation(broker, tmp_path, model_dir)) as playing:
        yield playing


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


@pytest.fixture
def stage(make_config, model_dir, federation, nursery, tmp_path):
    """See the class; answers come."""
    found = Stage(make_config, model_dir, federation, nursery, tmp_path, threading.Event())
    found.may_answer.set()
    yield found
    found.may_answer.set()


def updates_of(config):
    return [entry for entry in read_ledger(config) if isinstance(entry, UpdateEntry)]


def local_weights(config, version):
    return load_file(Path(version_path(config.weights.root, version)) / "model.safetensors")


def verdict_of(config):
    with RunReader(config.kafka, config.name) as reader:
        return audit(config.name, reader.advance())


def test_a_site_starts_from_the_global_version_and_hands_over_what_it_learned(stage):
    config = stage.configure(steps=4)
    start = {name: tensor + 0.01 for name, tensor in stage.federation.weights(1).items()}
    stage.federation.publish(start)
    with stage.playing(config):
        stage.federation.order("north", steps=2)
        stage.wait_for_updates(1)
        stage.federation.merge()
        stage.federation.order("north", steps=2)
        stage.ends()
    entries = read_ledger(config)
    first, second = surviving_adoptions(entries)
    assert (first.step, first.global_version, second.step, second.global_version) == (0, 2, 2, 3)
    adopted = local_weights(config, first.version)
    assert all(np.array_equal(adopted[name], tensor) for name, tensor in start.items())
    one, two = updates_of(config)
    assert [(each.since, each.step, each.update.sequence) for each in (one, two)] == [(0, 2, 1), (2, 4, 2)]
    assert (one.update.base_version, one.update.steps, one.update.round) == (2, 2, 1)
    line = surviving_steps(entries)
    assert one.update.samples == sum(part.samples for step in line[:2] for part in step.trained) == 24
    made, learned = stage.federation.numbers(one.update), local_weights(config, line[1].version)
    assert all(np.array_equal(learned[name] - start[name], made[name]) for name in start)
    merged = local_weights(config, second.version)
    assert all(np.allclose(merged[name], learned[name], atol=1e-7) for name in start), "one site's mean is its own"
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults
    assert (verdict.updates, verdict.adoptions) == (2, 2)
    site = stage.federation.sites()["north"]
    assert (site.samples, site.base_version) == (48, 3)
    assert site.cores >= 1
    assert site.tokens_s > 0


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


@pytest.mark.parametrize("point", [*SITE_POINTS, "checkpoint_half_written", "before_manifest", "after_manifest"])
def test_a_site_that_is_killed_hands_over_every_step_once(point, stage):
    config = stage.configure(steps=4, federation={"codec": {"name": "int8"}})
    room = stage.arm(point)
    with stage.playing(config, room), Merging(stage.federation):
        stage.ends(-9)
        assert hits(room, point)
        stage.start(config, room)
        stage.ends()
    verdict = assert_each_step_is_in_one_update(config, stage.federation)
    assert (verdict.updates, verdict.steps) == (2, 4)
    assert len(stage.federation.updates()) == 2


@pytest.mark.parametrize("point", ["in_transaction", "after_transaction"])
def test_a_site_that_is_killed_while_it_adopts_goes_on_from_the_global_version(point, stage):
    config = stage.configure(steps=4)
    room = stage.directory / "room"
    room.mkdir()
    with stage.playing(config, room):
        stage.federation.order("north", steps=2)
        stage.wait_for_updates(1)
        stage.arm(point)  # nothing is dropped, so the next transaction is the adoption's
        stage.federation.merge()
        stage.federation.order("north", steps=2)
        stage.ends(-9)
        stage.start(config)
        stage.ends()
    assert_each_step_is_in_one_update(config, stage.federation)
    adopted = surviving_adoptions(read_ledger(config))
    assert [(entry.step, entry.global_version) for entry in adopted] == [(0, 1), (2, 2)]


def test_a_site_whose_newest_checkpoint_is_broken_hands_over_nothing_twice(stage):
    """It goes on from a checkpoint before its update, does those steps again, and drops what they made."""
    config = stage.configure(steps=5, checkpoint_every=1, keep_checkpoints=4)
    with stage.playing(config), Merging(stage.federation, rounds=1):
        stage.wait_for_updates(2)
        stage.nursery.kill(9)
        stage.ends(-9)
    newest = sorted(Path(config.learner.checkpoint_root).glob("g*-s*-*"), key=lambda path: path.stat().st_mtime)
    broken = [path for path in newest if path.name.split("-")[1] == "s00000004"]
    assert broken
    for path in broken:
        (path / "state.json").write_text("{}")
    with Rollouts(config, stage.model_dir):
        stage.federation.merge()
        stage.federation.order("north", steps=1)
        stage.start(config)
        stage.ends()
    assert "the checkpoint knows less than was handed to the federation" in stage.nursery.said()
    verdict = assert_each_step_is_in_one_update(config, stage.federation)
    assert sorted(sequence for _, sequence in stage.federation.updates()) == [1, 2, 3]
    assert verdict.steps == 5


def test_a_site_pauses_while_the_store_is_away_and_loses_nothing(stage):
    config = stage.configure(steps=4)
    store, hidden = Path(stage.federation.store), Path(f"{stage.federation.store}-hidden")
    with stage.playing(config):
        wait_until(lambda: len(surviving_adoptions(read_ledger(config))) == 1)
        store.rename(hidden)
        store.write_text("no directory")
        stage.federation.order("north", steps=2)
        wait_until(lambda: "federation's store does not have or take it" in stage.nursery.said())
        assert not stage.federation.updates()
        store.unlink()
        hidden.rename(store)
        stage.wait_for_updates(1)
        stage.federation.merge()
        stage.federation.order("north", steps=2)
        stage.ends()
    assert_each_step_is_in_one_update(config, stage.federation)


def test_a_site_pauses_while_the_federation_s_broker_is_away_and_loses_nothing(stage, tmp_path):
    with Broker(tmp_path / "kafka-of-federation") as broker:
        elsewhere = Federation(broker.bootstrap, stage.directory, stage.model_dir)
        kafka = {"bootstrap": broker.bootstrap, "request_timeout_s": 1.0}
        config = stage.configure(steps=4, federation=elsewhere.section("north", kafka=kafka))
        with stage.playing(config), closing(elsewhere):
            stage.may_answer.clear()
            wait_until(lambda: len(surviving_adoptions(read_ledger(config))) == 1)
            elsewhere.order("north", steps=2)
            elsewhere.heard_by("north")
            os.kill(broker.pid, signal.SIGSTOP)
            stage.may_answer.set()
            wait_until(lambda: len(updates_of(config)) == 1)
            wait_until(lambda: "the federation's broker is away, trying again" in stage.nursery.said())
            assert not stage.nursery.has_ended()
            os.kill(broker.pid, signal.SIGCONT)
            wait_until(lambda: elsewhere.updates() or stage._has_ended())
            elsewhere.merge()
            elsewhere.order("north", steps=2)
            stage.ends()
            assert_each_step_is_in_one_update(config, elsewhere)


def test_a_site_hands_over_an_adapter(stage):
    lora = {"rank": 4, "alpha": 8}
    adapter = stage.directory / "adapter"
    adapter.mkdir()
    save_file(adapter_tensors(stage.model_dir, lora), adapter / "model.safetensors")
    with closing(Federation(stage.federation.bootstrap, stage.directory, adapter)) as of_adapters:
        config = stage.configure(steps=2, lora=lora, federation=of_adapters.section("north"))
        with stage.playing(config):
            of_adapters.order("north", steps=2)
            stage.ends()
        (entry,) = updates_of(config)
        made, base = of_adapters.numbers(entry.update), of_adapters.weights(1)
        version = surviving_steps(read_ledger(config))[-1].version
        learned = load_file(Path(version_path(config.weights.root, version)) / "adapter_model.safetensors")
        assert made.keys() == learned.keys() == base.keys()
        assert all(np.array_equal(learned[name] - base[name], made[name]) for name in base)
        assert max(float(np.abs(each).max()) for each in made.values()) > 0


def adapter_tensors(model_dir, lora):
    """Of an adapter that changes nothing yet."""
    shapes = {name: tensor.shape for name, tensor in load_file(model_dir / "model.safetensors").items()}
    draw = np.random.default_rng(0)
    return {
        name: np.zeros(shape, np.float32) if ".lora_B." in name else draw.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in adapter_shapes(LoraConfig(**lora), shapes).items()
    }


@pytest.mark.parametrize("idle", ["wait", "train"])
def test_a_site_that_is_not_selected_waits_or_trains_by_itself(idle, stage):
    config = stage.configure(steps=3, federation={"not_selected": idle})
    with stage.playing(config):
        stage.federation.order("south", steps=2)
        wait_until(lambda: "north" in stage.federation.sites() and stage.federation.sites()["north"].base_version == 1)
        if idle == "train":
            stage.ends()
        else:
            stage.federation.heard_by("north")
            asked_at = now()
            stage.federation.order("north", steps=3)
            stage.ends()
            assert all(step.at > asked_at for step in surviving_steps(read_ledger(config)))
    steps = len(surviving_steps(read_ledger(config)))
    assert (steps, len(stage.federation.updates())) == ((3, 0) if idle == "train" else (3, 1))
    assert verdict_of(config).ok


def test_a_site_at_work_answers_the_next_round_from_the_same_version_with_what_it_does(stage):
    """The quorum was missed while it worked: it trains nothing twice, and takes up the version that comes of it."""
    config = stage.configure(steps=4)
    stage.may_answer.clear()
    with stage.playing(config):
        for _ in range(2):
            stage.federation.order("north", steps=2)
            wait_until(lambda: stage.federation.sites().get("north"))
            stage.federation.heard_by("north")
        stage.may_answer.set()
        stage.wait_for_updates(1)
        stage.federation.order("north", steps=2)
        stage.federation.heard_by("north")
        stage.federation.merge()
        stage.federation.order("north", steps=2)
        stage.ends()
    updates = stage.federation.updates().values()
    assert [(each.sequence, each.base_version) for each in updates] == [(1, 1), (2, 2)]
    assert_each_step_is_in_one_update(config, stage.federation)


def test_a_site_whose_update_was_left_out_sends_another_one_if_it_is_asked(stage):
    config = stage.configure(steps=6)
    with stage.playing(config):
        stage.federation.order("north", steps=2)
        stage.wait_for_updates(1)
        stage.federation.order("north", steps=2, again=("north",))
        stage.wait_for_updates(2)
        stage.federation.order("north", steps=2)
        stage.federation.heard_by("north")
        stage.federation.merge(leave_out=[(("north", 1), "too_large")])
        stage.federation.order("north", steps=2)
        stage.ends()
    updates = stage.federation.updates().values()
    assert [(each.sequence, each.base_version) for each in updates] == [(1, 1), (2, 1), (3, 2)]
    assert_each_step_is_in_one_update(config, stage.federation)


def test_an_adoption_after_steps_of_its_own_is_on_the_line_after_a_restart(stage):
    from tests.support.trajectories import shared_ranks
    from trainers.replay import replay

    config = stage.configure(steps=8, keep_checkpoints=9, federation={"not_selected": "train"})
    with stage.playing(config):
        stage.federation.order("south", steps=2)
        wait_until(lambda: len(surviving_steps(read_ledger(config))) >= 2)
        stage.may_answer.clear()
        stage.federation.order("north", steps=2, groups_per_step=2)
        wait_until(lambda: len(surviving_adoptions(read_ledger(config))) == 2)
        stage.nursery.kill(signal.SIGTERM)
        stage.ends()
        stage.may_answer.set()
        stage.start(config)
        stage.wait_for_updates(1)
        stage.federation.order("south", steps=2)
        stage.ends()
    line = surviving_steps(read_ledger(config))
    (entry,) = updates_of(config)
    assert [len(step.trained) for step in line if entry.since < step.step <= entry.step] == [2, 2]
    assert surviving_adoptions(read_ledger(config))[-1].step == entry.since
    assert verdict_of(config).ok, verdict_of(config).faults
    found = replay(config, shared_ranks(), entry.step)
    assert found.equal, found


def test_a_codec_that_was_changed_while_an_update_was_due_is_refused_where_its_files_are_gone(stage):
    config = stage.configure(steps=2, federation={"codec": {"name": "sparse", "keep_share": 0.5}})
    room = stage.arm("update_recorded")
    with stage.playing(config, room):
        stage.federation.order("north", steps=2)
        stage.ends(-9)
        (recorded,) = updates_of(config)
        files = Path(update_path(stage.federation.store, "north", 1))
        files.rename(files.with_name("elsewhere"))
        changed = stage.configure(steps=2, federation={"codec": {"name": "sparse", "keep_share": 0.25}})
        stage.start(changed)
        stage.ends(2)
        assert "give federation.codec as it was, for one start" in stage.nursery.said()
        files.with_name("elsewhere").rename(files)
        stage.start(changed)
        stage.ends()
    assert stage.federation.updates() == {("north", 1): recorded.update}
    stage.federation.numbers(recorded.update)


def test_an_asynchronous_site_waits_for_nobody(stage):
    alone = Federation(stage.federation.bootstrap, stage.directory, stage.model_dir, asynchronous=True)
    config = stage.configure(steps=4, federation=alone.section("north", steps=2, codec={"name": "sparse"}))
    with stage.playing(config):
        stage.ends()
    assert [(name, update.base_version, update.round) for name, update in alone.updates().items()] == [
        (("north", 1), 1, None), (("north", 2), 1, None),
    ]  # fmt: skip
    assert_each_step_is_in_one_update(config, alone)
    alone.close()


def test_a_site_that_expects_another_kind_of_federation_says_so(stage):
    config = stage.configure(steps=4, federation={"asynchronous": True})
    with stage.playing(config):
        stage.ends(2)
    assert "federation.asynchronous = true, but the coordinator" in stage.nursery.said()


def test_a_step_after_an_adoption_is_replayed_bit_for_bit(stage):
    from tests.support.trajectories import shared_ranks
    from trainers.replay import replay

    section = {"proximal_mu": 0.1, "keep_optimizer": False}
    config = stage.configure(steps=5, checkpoint_every=3, keep_checkpoints=9, federation=section)
    with stage.playing(config), Merging(stage.federation):
        stage.ends()
    for step in (1, 2, 3, 4, 5):  # from the beginning, from before an adoption, from between two
        found = replay(config, shared_ranks(), step)
        assert found.equal, found
