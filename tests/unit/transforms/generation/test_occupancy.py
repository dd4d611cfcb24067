"""Where the slots' time goes adds up to the clock."""

import time

import pytest

from transforms import metrics
from transforms.generation.occupancy import Occupancy


def seconds(share):
    states = ("filled", "admission", "no_prompts", "no_worker", "back_pressure")
    return {state: metrics.SLOT_SECONDS.labels(share, state)._value.get() for state in states}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_filled_and_empty_slots_add_up_to_the_time_that_passed(clock):
    occupancy = Occupancy(4, 71)
    occupancy.fill(3)
    clock[0] += 2.0
    occupancy.explain("admission")
    clock[0] += 1.0
    occupancy.fill(4)
    clock[0] += 5.0
    occupancy.fill(0)
    assert seconds("71") == pytest.approx(
        {"filled": 1.5 + 0.75 + 5.0, "no_prompts": 0.5, "admission": 0.25, "no_worker": 0.0, "back_pressure": 0.0}
    )


def test_more_prompts_than_slots_fill_no_more_than_all(clock):
    occupancy = Occupancy(2, 72)
    occupancy.fill(5)
    clock[0] += 1.0
    occupancy.fill(0)
    assert seconds("72")["filled"] == pytest.approx(1.0)


def test_what_passes_is_counted_before_anything_changes(clock):
    occupancy = Occupancy(4, 73)
    occupancy.fill(1)
    clock[0] += 2.0
    occupancy.advance()
    assert (seconds("73")["filled"], seconds("73")["no_prompts"]) == (0.5, 1.5)
