"""Figures of a step."""

import math
import socket
import urllib.request
from dataclasses import replace

import pytest

from schemas.errors import PortError
from schemas.identity import GroupId
from schemas.ledger import StepEntry
from schemas.trajectories import Span
from tests.support.samples import group
from trainers import metrics
from trainers.accounts import Versions
from trainers.engine import Outcome
from trainers.planner import Arrival, Plan


def arrival(offset, version, rewards):
    samples = group(0, offset, len(rewards), weight_version_spans=(Span(version, 0),),
                    weight_version_min=version, weight_version_max=version)  # fmt: skip
    samples = [replace(sample, reward=reward) for sample, reward in zip(samples, rewards, strict=True)]
    return Arrival(GroupId(0, offset), (0, offset), tuple(samples))


def test_figures_of_a_plan():
    arrivals = (arrival(0, 1, (1.0, 0.0)), arrival(1, 2, (1.0, None)))
    plan = Plan(arrivals, (), (0.0, 0.0, 1.0, 0.0, 1.0))
    assert metrics.of_plan(plan, Versions({1: 0, 2: 1}), 2) == {
        "groups_dropped": 0,
        "reward_mean": 0.4,
        "reward_mean_trained": pytest.approx(2 / 3),
        "feedback_groups": 0,
        "correction_groups": 0,
        "demonstration_groups": 0,
        "staleness_max": 2,
        "staleness_mean": 1.5,
        "tokens": 24,
        "response_tokens_mean": 3.0,
        "tokens_too_old": 0,
    }


def test_tokens_that_are_too_old_are_counted_and_make_no_step_stale():
    """Of 2 samples of 3 tokens, the first two by version 1; the third sample has no reward."""
    spans = {"weight_version_spans": (Span(1, 0), Span(3, 2)), "weight_version_min": 1, "weight_version_max": 3}
    samples = [replace(sample, **spans) for sample in arrival(0, 1, (1.0, 0.0, None)).samples]
    arrivals = (Arrival(GroupId(0, 0), (0, 0), tuple(samples)),)
    figures = metrics.of_plan(Plan(arrivals, (), (), too_old=(1,)), Versions({1: 0, 2: 1, 3: 2}), 3)
    assert (figures["tokens_too_old"], figures["staleness_max"], figures["staleness_mean"]) == (4, 1, 1)
    whole = metrics.of_plan(Plan(arrivals, (), ()), Versions({1: 0, 2: 1, 3: 2}), 3)
    assert (whole["tokens_too_old"], whole["staleness_max"]) == (0, 3)


def test_redone_step_keeps_the_reward_of_all_its_groups():
    dead = StepEntry(generation=1, step=1, version=2, trained=(), dropped=(), metrics={"reward_mean": 0.25})
    plan = Plan((arrival(0, 1, (1.0, 0.0)),), (), (1.0, 0.0), dead)
    assert metrics.of_plan(plan, Versions({1: 0}), 0)["reward_mean"] == 0.25


def test_what_is_not_finite_is_left_out_of_the_json():
    outcome = Outcome(False, math.nan, math.inf, {"logprob_gap_mean": 0.1, "clip_fraction": 0.0})
    assert metrics.of_outcome(outcome) == {"logprob_gap_mean": 0.1, "clip_fraction": 0.0}


def test_gauges_are_served_and_a_taken_port_is_named():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()
        with pytest.raises(PortError, match=f"learner.metrics_port {port}"):
            metrics.Gauges(port)
    gauges = metrics.Gauges(port)
    assert 'asyncflow_learner_state{state="starting"} 1.0' in read(port)
    gauges.show({"loss": 0.5})
    gauges.show({"loss": 0.25})
    gauges.drop(["stale", "stale"])
    gauges.wait(3)
    page = read(port)
    for line in ("asyncflow_learner_loss 0.25", 'asyncflow_learner_dropped_total{reason="stale"} 2.0',
                 'asyncflow_learner_dropped_total{reason="nonfinite"} 0.0',
                 "asyncflow_learner_groups_waiting 3.0", 'asyncflow_learner_state{state="waiting"} 1.0',
                 'asyncflow_learner_state{state="training"} 0.0'):  # fmt: skip
        assert line in page


def read(port):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()


def late(offset, version, purpose, rewards):
    found = arrival(offset, version, rewards)
    return replace(found, samples=tuple(replace(sample, purpose=purpose) for sample in found.samples))


def test_groups_are_counted_by_purpose_and_only_answers_have_rewards_and_ages():
    versions = Versions({1: 0, 2: 1, 3: 2})
    arrivals = (arrival(0, 3, (1.0, 0.0)), late(1, 2, "feedback", (0.25,)), late(2, 1, "correction", (-2.0,)),
                late(3, 1, "demonstration", (1.0,)), late(4, 3, "feedback", (0.75,)))  # fmt: skip
    figures = metrics.of_plan(Plan(arrivals, (), (0.5,), too_old=(1,)), versions, 3)
    counted = [figures[f"{purpose}_groups"] for purpose in ("feedback", "correction", "demonstration")]
    assert counted == [2, 1, 1]
    assert figures["reward_mean_trained"] == 0.5
    assert (figures["staleness_max"], figures["staleness_mean"], figures["feedback_staleness_max"]) == (1, 1, 3)
    assert figures["tokens_too_old"] == 0, "they are trained"


def test_a_step_of_demonstrations_alone_has_neither_rewards_nor_ages():
    figures = metrics.of_plan(Plan((late(0, 1, "demonstration", (1.0,)),), (), ()), Versions({1: 0}), 3)
    assert figures["demonstration_groups"] == 1
    assert not [name for name in figures if "staleness" in name or "reward" in name]
