"""A learner as a federation's site, on a real broker; tests/support/federation.py plays the coordinator."""

import logging
import os
import signal
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.local.broker import Broker
from schemas.ledger import surviving_adoptions, surviving_steps
from schemas.lora import LoraConfig, adapter_shapes
from schemas.records import now
from schemas.weights import version_path
from tests.support.federation import Federation
from tests.support.site_stage import Merging, assert_each_step_is_in_one_update, local_weights, updates_of
from tests.support.trajectories import read_ledger, verdict_of, wait_until

logging.getLogger("kafka").setLevel(logging.ERROR)


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
