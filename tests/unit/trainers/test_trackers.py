"""Where the figures of steps go besides the ledger."""

import json
import sys

import pytest
import structlog

from schemas.config import validate
from schemas.errors import ConfigError
from schemas.ledger import StepEntry
from trainers.trackers import Trackers, open_trackers


def step(number, generation=1):
    return StepEntry(generation=generation, step=number, version=number + generation, trained=(), dropped=(),
                     metrics={"loss": 0.5 * number, "reward_mean": 0.25})  # fmt: skip


@pytest.fixture
def make_config(tmp_path):
    def make(*names):
        learner = {"trackers": names, "checkpoint_root": str(tmp_path / "checkpoints")}
        return validate({"name": "sums", "learner": learner}, "test")

    return make


class Away:
    """A tracker whose server does not answer."""

    def __init__(self):
        self.asked = []

    def log(self, entry, figures):
        self.asked.append((entry.step, figures["loss"]))
        raise OSError("no route")

    def close(self):
        raise OSError("no route")


def test_steps_become_lines_beside_the_checkpoints_and_a_second_learner_goes_on(make_config, tmp_path):
    for number, generation in ((1, 1), (2, 1), (2, 2)):
        trackers = open_trackers(make_config("jsonl", "jsonl"))
        trackers.log(step(number, generation))
        trackers.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["generation"], line["version"], line["loss"]) for line in lines] == [
        (1, 1, 2, 0.5), (2, 1, 3, 1.0), (2, 2, 4, 1.0),
    ]  # fmt: skip
    assert "at" in lines[0]


def test_a_server_that_is_away_ends_no_run(tmp_path):
    away = Away()
    trackers = Trackers({"wandb": away})
    with structlog.testing.capture_logs() as said:
        for number in (1, 2):
            trackers.log(step(number))
    trackers.close()
    assert away.asked == [(1, 0.5), (2, 1.0)]
    assert [(each["event"], each["tracker"], each["step"]) for each in said] == [
        ("tracker_failed", "wandb", 1), ("tracker_failed", "wandb", 2),
    ]  # fmt: skip


def test_a_full_disk_is_no_tracker_that_is_away():
    with pytest.raises(OSError, match="no route"):
        Trackers({"jsonl": Away()}).log(step(1))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_what_is_not_installed_is_named(make_config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(
        ConfigError, match=f"learner.trackers names '{name}', which is not installed.*pip install {name}"
    ):
        open_trackers(make_config("jsonl", name))


def test_a_name_that_nobody_knows_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"learner\.trackers"):
        make_config("tensorbord")


def test_tensorboard_has_what_was_logged(make_config, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trackers = open_trackers(make_config("tensorboard"))
    trackers.log(step(1))
    trackers.log(step(2))
    trackers.close()
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "sums"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(1, 0.5), (2, 1.0)]
