"""A coordinator that is killed at every point at which it could lose or double something, in a process of its own."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tomli_w

from pipelines.federation.audit import audit
from schemas.crash_points import COORDINATOR_POINTS, VARIABLE, arm, hits
from schemas.federation import Merge, decode_rounds_entry
from trainers.log import read_topic


@pytest.fixture
def start(tmp_path):
    """Starts the verb as a user does; what still runs at the end is ended."""
    room = tmp_path / "points"
    room.mkdir()
    started = []

    def begin(config):
        file = tmp_path / "coordinator.toml"
        file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        log = (tmp_path / "coordinator.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.main", "federate", "--config", str(file)],
            stdout=log, stderr=log, env={**os.environ, VARIABLE: str(room)},
        )  # fmt: skip
        started.append(process)
        return process

    begin.room, begin.log = room, tmp_path / "coordinator.log"
    yield begin
    for process in started:
        process.kill()
        process.wait()


def drive(sites, start, config, timeout_s=200):
    """Starts a coordinator again and again until its rounds are done; returns how often."""
    starts, process, deadline = 0, None, time.monotonic() + timeout_s

    def is_over(_):
        nonlocal starts, process
        if process is not None and process.poll() is None:
            assert time.monotonic() < deadline, start.log.read_text()[-3000:]
            return False
        if process is not None and process.returncode == 0:
            return True
        assert process is None or process.returncode == -9, start.log.read_text()[-3000:]
        process, starts = start(config), starts + 1
        return False

    sites.play(is_over, beat_s=1.0)
    return starts


def test_killed_at_every_point_it_merges_each_update_once(configure, play, start):
    """Each point is armed for a process of its own, and the one that follows goes on."""
    config = configure(rounds=len(COORDINATOR_POINTS), quorum=2, strategy={"name": "fedavgm"})
    sites = play(config, ["east", "north"])
    learned = []

    def learn(name, row, steps):
        learned.append(name)
        return np.ones(row.size, dtype=np.float32)

    sites.learn = learn
    sites.beat()
    waiting = list(COORDINATOR_POINTS)

    def arm_next(begin=start):
        if waiting:
            arm(begin.room, waiting.pop(0))

    class Arming:
        room, log = start.room, start.log

        def __call__(self, config):
            arm_next()
            return start(config)

    starts = drive(sites, Arming(), config)
    assert {point: len(hits(start.room, point)) for point in COORDINATOR_POINTS} == dict.fromkeys(COORDINATOR_POINTS, 1)
    assert starts == len(COORDINATOR_POINTS) + 1
    verdict = audit(config)
    assert verdict.holds, verdict.faults
    merges = [entry for entry in (decode_rounds_entry(record.value) for record in
              read_topic(config, config.topics.rounds)) if isinstance(entry, Merge)]  # fmt: skip
    assert len(merges) == config.rounds
    assert sum(len(merge.merged) for merge in merges) == 2 * config.rounds == len(learned)
    velocity = moved = 0.0
    for _ in merges:
        velocity = 0.9 * velocity + 1
        moved += velocity
    first, last = sites._versions.initial()[1], sites.await_version(merges[-1].version)
    np.testing.assert_allclose(last - first, moved, rtol=1e-5)
