"""A run in which workers are killed, added, frozen and slowed, with a real broker, Prism and simulated engines."""

import pytest

from tests.benchmarks.workers import Scene, play

UNDISTURBED = 0.75
"""Of the rate before; the windows are short, and a few groups more or less are a tenth."""


@pytest.mark.timed
def test_no_group_is_lost_or_doubled_and_the_other_workers_go_on(broker, tmp_path):
    with Scene(broker, tmp_path, engines=5, requests_at_once=8, in_flight=48) as scene:
        figures = play(scene, window_s=2.0)
    assert (figures["lost"], figures["doubled"]) == (0, 0)
    assert scene.topics.letters() == []
    ratios = {event: figures[event]["rate_ratio"] for event in ("killed", "added", "frozen", "slowed")}
    assert all(ratio > UNDISTURBED for ratio in ratios.values()), ratios
    assert figures["added"]["first_answer_s"] < 2.0
    assert figures["frozen"]["back_after_s"] < 5.0
