"""A coordinator that is killed at every point at which it could lose or double something, in a process of its own."""

import numpy as np

from pipelines.federation.audit import audit
from schemas.crash_points import COORDINATOR_POINTS, VARIABLE, arm, hits
from schemas.federation import Merge, decode_rounds_entry
from trainers.log import read_topic


def drive(sites, nursery, config, directory, points):
    """Starts a coordinator again and again, each with the next point armed, until its rounds are done."""
    room, waiting = directory / "points", list(points)
    room.mkdir()
    starts = 0

    def is_over(_):
        nonlocal starts
        if nursery.pid:
            if not nursery.has_ended():
                return False
            code = nursery.wait()
            assert code in {0, -9}, nursery.said()
            if code == 0:
                return True
        if waiting:
            arm(room, waiting.pop(0))
        nursery.start(config, directory, verb="federate", **{VARIABLE: str(room)})
        starts += 1
        return False

    sites.play(is_over, beat_s=1.0)
    return starts, {point: len(hits(room, point)) for point in points}


def test_killed_at_every_point_it_merges_each_update_once(configure, play, nursery, tmp_path):
    config = configure(rounds=len(COORDINATOR_POINTS), quorum=2, strategy={"name": "fedavgm"})
    learned = []

    def learn(name, row, steps):
        learned.append(name)
        return np.ones(row.size, dtype=np.float32)

    sites = play(config, ["east", "north"], learn=learn)
    sites.beat()
    starts, hit = drive(sites, nursery, config, tmp_path, COORDINATOR_POINTS)
    assert hit == dict.fromkeys(COORDINATOR_POINTS, 1)
    assert starts == len(COORDINATOR_POINTS) + 1
    verdict = audit(config)
    assert verdict.holds, verdict.faults
    entries = [decode_rounds_entry(record.value) for record in read_topic(config, config.topics.rounds)]
    merges = [entry for entry in entries if isinstance(entry, Merge)]
    assert [len(merge.merged) for merge in merges] == [2] * config.rounds
    assert len(learned) - 2 * config.rounds == verdict.counts["left_out"].get("duplicate", 0), "each has its fate"
    velocity = moved = 0.0
    for _ in merges:
        velocity = 0.9 * velocity + 1
        moved += velocity
    sites.await_version(merges[-1].version)
    np.testing.assert_allclose(sites.row - sites.first, moved, rtol=1e-5)
