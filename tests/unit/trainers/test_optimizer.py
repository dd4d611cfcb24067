"""The learning rate's schedule; the optimizer's steps are in test_engine.py."""

import math

import pytest

from schemas.config import LearnerConfig
from trainers.optimizer import learning_rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]),
    ],
)
def test_learning_rate_rises_then_follows_its_schedule(schedule, expected):
    config = LearnerConfig(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate(config, step, 6) for step in range(6)] == pytest.approx(expected)
