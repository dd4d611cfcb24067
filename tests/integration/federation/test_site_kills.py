"""A site that is killed: whatever the instant, each of its steps is in one update, announced as it was recorded."""

import logging
from pathlib import Path

import pytest

from schemas.crash_points import SITE_POINTS, hits
from schemas.federation import update_path
from schemas.ledger import surviving_adoptions
from tests.support.site_stage import Merging, assert_each_step_is_in_one_update, updates_of
from tests.support.trajectories import Rollouts, read_ledger

logging.getLogger("kafka").setLevel(logging.ERROR)


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
