"""The feedback pipeline on Prism and a real broker: every judgement ends once, whatever dies."""

import os
import time
from dataclasses import dataclass

import pytest

from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas import crash_points
from schemas.config import KafkaConfig, ModelConfig, RunConfig
from schemas.joining import FeedbackConfig
from tests.pipeline.rollout_process import JoinProcess, wait_for
from tests.support.feedback_traffic import Sender, account, draw, foresee

ROLLOUTS, JUDGEMENTS = 300, 300
TIMES = FeedbackConfig(settle_s=2, wait_s=20, unknown_after_s=15, correction_s=20, user_rate_per_s=1000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@dataclass
class Scene:
    """A run with traffic in its topics."""

    config: RunConfig
    traffic: object

    def finished(self):
        """What became of everything, once all of it has become something."""
        found = account(self.config)
        all_judged = len(found.judged) == len(self.traffic.judgements)
        return found if all_judged and found.kinds["joined"] + found.kinds["expired"] == ROLLOUTS else None


@pytest.fixture(scope="module")
def scene(broker, model):
    """Early judgements, rollouts and judgements, and late ones once the others are decided by the topics' clock.

    Its pipeline is started last, on a log that is old by then: it has nothing to wait for, and decides the same.
    """
    config = RunConfig(
        name=f"join-{os.getpid()}",
        kafka=KafkaConfig(bootstrap=broker),
        model=ModelConfig(path=str(model)),
        feedback=TIMES,
    )
    create_topics(config)
    traffic = draw(ROLLOUTS, JUDGEMENTS, run=config.name)
    sender = Sender(config)
    sender.send(traffic.early)
    time.sleep(0.1)
    sender.send(traffic.mixed)
    time.sleep(TIMES.settle_s + 0.5)
    sender.send(traffic.late)
    return Scene(config, traffic)


def test_killed_again_and_again_it_decides_what_it_would_have(scene, tmp_path, monkeypatch):
    """The same traffic for another run, whose pipeline dies in the middle of a transaction, after one, and anywhere."""
    config = scene.config.model_copy(update={"name": f"{scene.config.name}-killed"})
    create_topics(config)
    traffic = draw(ROLLOUTS, JUDGEMENTS, run=config.name)
    again = Scene(config, traffic)
    room = tmp_path / "points"
    room.mkdir()
    monkeypatch.setenv(crash_points.VARIABLE, str(room))
    sender = Sender(config)
    sender.send(traffic.early)
    time.sleep(0.1)
    for point in ("outcomes_sent", "outcomes_committed"):
        crash_points.arm(room, point)
    with JoinProcess(config, tmp_path) as first:
        sender.send(traffic.mixed)
        time.sleep(TIMES.settle_s + 0.5)
        sender.send(traffic.late)
        wait_for(lambda: first.process.poll() is not None, 60)
    with JoinProcess(config, tmp_path) as second:
        wait_for(lambda: second.process.poll() is not None, 60)
    with JoinProcess(config, tmp_path) as third:
        wait_for(lambda: account(config).judged, 60, third)
        third.kill()
    with JoinProcess(config, tmp_path) as last:
        found = wait_for(again.finished, 120, last)
        assert last.drain() == 0
    assert {point: len(crash_points.hits(room, point)) for point in crash_points.JOIN_POINTS} == dict.fromkeys(
        crash_points.JOIN_POINTS, 1
    )
    assert found.once()
    assert len(found.judged) == len(traffic.judgements)
    assert (found.told, found.kinds) == foresee(config), "as if nothing had happened"


@pytest.fixture(scope="module")
def undisturbed(scene, tmp_path_factory):
    """The account of a pipeline that nobody disturbed."""
    with JoinProcess(scene.config, tmp_path_factory.mktemp("join")) as running:
        found = wait_for(scene.finished, 120, running)
        assert running.drain() == 0
    return found


def test_every_judgement_has_one_fate_and_every_rollout_one_end(scene, undisturbed):
    assert undisturbed.once()
    fates = undisturbed.fates
    assert fates.total() == len(scene.traffic.judgements)
    assert fates["unknown"] == JUDGEMENTS // 20
    assert fates["duplicate"] > 0.1 * JUDGEMENTS
    assert fates["corrected"] + fates["no_change"] + fates["too_late"] > 0.05 * JUDGEMENTS
    assert fates["used"] > 0.3 * JUDGEMENTS
    assert {"retracted", "retraction"} & set(fates)
    assert (undisturbed.told, undisturbed.kinds) == foresee(scene.config), "the log alone decides"
