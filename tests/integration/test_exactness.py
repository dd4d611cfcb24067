"""A learner that is killed everywhere ends with the same bits as one that never was.

the same groups in two logs ──► a learner left alone        ──► the same weights, step by step,
                            └─► killed at every crash point ──► and the same checkpoint
"""

import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.local.topics import create_topics
from schemas.crash_points import LEARNER_POINTS, VARIABLE, arm, hits
from schemas.identity import GroupId
from schemas.ledger import StartEntry
from schemas.trajectories import encode
from tests.support.learners import learner_config
from tests.support.trajectories import (
    Rollouts,
    assert_consistent,
    wait_until,
    weight_hash,
    write_prompts,
    write_records,
)
from trainers.engine import STATE_DIRECTORY

STEPS = 10
GROUPS = 40
ALSO_WHILE_STARTING = ("weights_half_written", "weights_written", "in_transaction", "after_transaction")


@pytest.fixture
def make_run(run_config, model_dir, tmp_path):
    """From a name to the configuration of a run whose topics hold the prompts and their groups."""

    def make(name):
        directory = tmp_path / name
        directory.mkdir()
        kafka = run_config.kafka.model_copy(update={"partitions": 1})
        config = run_config.model_copy(update={"name": f"{run_config.name}-{name}", "kafka": kafka})
        config = learner_config(config, directory, model_dir, steps=STEPS, checkpoint_every=2, max_staleness=1000)
        create_topics(config)
        write_prompts(config, GROUPS)
        write_records(config, [encode(group) for group in draw_groups(config, model_dir)])
        return config, directory

    return make


def draw_groups(config, model_dir):
    """Groups as version 1 answers; every fourth has no variance."""
    rollouts = Rollouts(config, model_dir, reward=lambda group, index: float(index % 2) if group.offset % 4 else 0.0)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    rollouts._load = lambda announced: base
    first = SimpleNamespace(version=1)
    return [rollouts.make_group(GroupId(0, offset), (6, 7, 8, 9 + offset), first) for offset in range(GROUPS)]


def learn_through_kills(nursery, config, directory):
    """Starts learners until one lives to the end; each is killed at one point of its first steps or its start.

    Every learner stops before its first step, so that the point is not met in its start.
    """
    room = directory / "crash-points"
    room.mkdir()
    on = {VARIABLE: str(room)}
    for point in LEARNER_POINTS:
        start_stopped(nursery, config, directory, room)
        arm(room, point)
        nursery.wake()
        assert nursery.wait() == -signal.SIGKILL, nursery.said()
        assert not (room / point).exists()
    for point in ALSO_WHILE_STARTING:
        arm(room, point)
        assert nursery.learn(config, directory, **on) == -signal.SIGKILL, nursery.said()
    assert nursery.learn(config, directory, **on) == 0, nursery.said()
    return {point: len(hits(room, point)) for point in LEARNER_POINTS}


def start_stopped(nursery, config, directory, room):
    before = len(hits(room, "before_forward"))
    arm(room, "before_forward", "stop")
    nursery.start(config, directory, **{VARIABLE: str(room)})
    wait_until(lambda: len(hits(room, "before_forward")) > before, every_s=0.01)


def final_state(directory):
    """The files of the newest checkpoint that hold weights and moments, byte by byte."""
    newest = max((directory / "checkpoints").glob(f"g*-s{STEPS:08d}-*"))
    return {path.name: path.read_bytes() for path in (newest / STATE_DIRECTORY).iterdir()}


def test_killed_at_every_point_or_never_the_bits_are_the_same(make_run, nursery):
    calm, calm_directory = make_run("calm")
    assert nursery.learn(calm, calm_directory) == 0, nursery.said()
    hit, hit_directory = make_run("hit")
    witnesses = learn_through_kills(nursery, hit, hit_directory)
    assert all(witnesses.values()), witnesses
    _, calm_line = assert_consistent(calm)
    entries, hit_line = assert_consistent(hit)
    assert sum(isinstance(entry, StartEntry) for entry in entries) >= len(LEARNER_POINTS) + 1
    assert [entry.trained for entry in hit_line] == [entry.trained for entry in calm_line]
    assert dropped(hit_line) == dropped(calm_line)
    hashes = [weight_hash(calm, entry.version) for entry in calm_line]
    assert [weight_hash(hit, entry.version) for entry in hit_line] == hashes
    assert len(set(hashes)) == STEPS
    state = final_state(hit_directory)
    assert sorted(state) == ["rank00-000.safetensors", "steps.json"]
    assert state == final_state(calm_directory)


def dropped(line):
    """When a learner finds out that a group has no variance depends on how it reads; that it does, not."""
    return {(part.group, part.at, part.reason) for entry in line for part in entry.dropped}
