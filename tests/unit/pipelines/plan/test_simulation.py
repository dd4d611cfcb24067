"""The simulation of the whole system against closed forms, and what has to hold of any run of it."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from pipelines.plan.calibration import Calibration, changed
from pipelines.plan.engine import Engine, Group
from pipelines.plan.lengths import mean_length, quantiles_of
from pipelines.plan.prediction import predict
from pipelines.plan.simulation import Shape, Simulation

PLAIN = {
    "name": "plain",
    "workload": {"response_tokens": [100], "group_size": 1, "groups_per_step": 8, "max_staleness": 1},
    "engine": {"slots": 8, "step_s": 0.01},
    "learner": {"token_s": 0.0},
    "log": {"latency_s": 0.0, "share_token_s": 0.0, "token_bytes": 0.0},
}
"""One engine answers 8 prompts in a second, which makes a step; all else takes no time."""


def plain(**values):
    return changed(Calibration.model_validate(PLAIN), {key.replace("__", "."): each for key, each in values.items()})


# ----------------------------------------------------------------------- closed forms


def test_one_engine_and_constant_lengths_give_slots_over_length_times_speed():
    found = predict(plain(), Shape(1))
    assert found.samples_per_s == pytest.approx(8 / (100 * 0.01))
    assert found.tokens_per_s == found.generated_tokens_per_s == pytest.approx(800)
    assert (found.slots_filled, found.engine_idle, found.waits_for) == (pytest.approx(1), pytest.approx(0), "engines")


def test_each_sequence_makes_a_decoding_step_longer():
    found = predict(plain(engine__sequence_s=0.005), Shape(1))
    assert found.samples_per_s == pytest.approx(8 / (100 * (0.01 + 8 * 0.005)))


def test_without_staleness_a_step_takes_the_sum_of_all_times():
    calibration = plain(
        workload__max_staleness=0, workload__prompt_tokens=100, engine__prefill_tokens_per_s=1000, log__latency_s=0.25,
        learner__fixed_s=0.5, learner__token_s=0.001, learner__publish_s=0.125, weights__fetch_s=0.0625,
    )  # fmt: skip
    prefill_s, decode_s, train_s = 8 * 100 / 1000, 100 * 0.01, 0.5 + 8 * 200 * 0.001
    found = predict(calibration, Shape(1))
    assert found.step_s == pytest.approx(prefill_s + decode_s + 0.25 + train_s + 0.125 + 0.0625)
    assert (found.staleness_mean, found.staleness_max) == (0, 0)
    assert found.learner_idle == pytest.approx(1 - train_s / found.step_s)


def test_a_slow_learner_sets_the_pace_and_is_never_idle():
    found = predict(plain(learner__fixed_s=3.0), Shape(1))
    assert found.step_s == pytest.approx(3)
    assert (found.learner_idle, found.waits_for) == (pytest.approx(0), "learner")
    assert found.engine_idle > 0.5


def test_ranks_share_tokens_but_not_a_sequence():
    calibration = plain(learner__token_s=0.1, workload__groups_per_step=8)
    assert predict(calibration, Shape(1, ranks=1)).step_s == pytest.approx(80)
    assert predict(calibration, Shape(1, ranks=4)).step_s == pytest.approx(20)
    assert predict(calibration, Shape(1, ranks=64)).step_s == pytest.approx(10), "100 tokens of one sequence"


def test_no_update_is_made_before_the_last_one_is_committed():
    found = predict(plain(learner__fixed_s=1.0, learner__publish_s=4.0, workload__max_staleness=4), Shape(2))
    assert found.step_s == pytest.approx(4)
    assert found.learner_held == pytest.approx(3 / 4)


def test_new_weights_cost_a_pause_and_the_tokens_under_way():
    calibration = plain(weights__pause_s=0.5, engine__prefill_tokens_per_s=1e9)
    found = predict(calibration, Shape(1))
    assert found.step_s == pytest.approx(1.5, rel=1e-3)
    assert found.engine_paused == pytest.approx(1 / 3, rel=1e-3)
    assert paused_with([50, 150], 1000.0) > 1.1 * paused_with([50, 150], 1e9), "some are under way"


def paused_with(lengths, prefill_tokens_per_s):
    calibration = plain(
        weights__pause_s=0.5, workload__response_tokens=lengths, engine__prefill_tokens_per_s=prefill_tokens_per_s
    )
    return predict(calibration, Shape(1)).engine_paused


def test_an_engine_that_is_asked_at_random_is_a_queue_with_several_servers():
    """M/M/c: the waiting time of Erlang's C formula, at 4 servers that are busy 70 % of the time."""
    servers, mean_s, busy = 4, 1.0, 0.7
    waited_s = wait_in_engine(servers, mean_s, rate=busy * servers / mean_s, groups=40_000)
    load = busy * servers
    tail = load**servers / math.factorial(servers) / (1 - busy)
    waits = tail / (sum(load**k / math.factorial(k) for k in range(servers)) + tail)
    assert waited_s == pytest.approx(waits * mean_s / (servers * (1 - busy)), rel=0.1)


def wait_in_engine(servers, mean_s, rate, groups):
    """Mean seconds from asking to the begin of an answer, of single samples that come at random."""
    draw, calibration = random.Random(3), plain(engine__slots=servers, engine__step_s=1.0)
    engine, now_s, came_s, total_s, left = Engine(calibration.engine), 0.0, 0.0, 0.0, groups
    asked = {}
    while left:
        if engine.next_end_s() <= came_s:
            now_s = engine.next_end_s()
            group = engine.end_sequence(now_s)
            total_s += now_s - asked.pop(group) - group.lengths[0]
            left -= 1
        else:
            now_s = came_s
            group = Group([draw.expovariate(1 / mean_s)], 0.0, 0)
            asked[group] = now_s
            engine.ask(group, now_s)
            came_s += draw.expovariate(rate)
    return total_s / groups


def test_the_log_and_the_pipeline_bound_the_rate_by_partition():
    tokens_s = 0.1 / 100
    slow = plain(log__share_token_s=tokens_s * 4)
    assert predict(slow, Shape(1, partitions=1)).samples_per_s == pytest.approx(1 / 0.4, rel=0.02)
    assert predict(slow, Shape(1, partitions=2)).samples_per_s == pytest.approx(2 / 0.4, rel=0.02)
    stored = plain(log__token_bytes=8.0, log__partition_bytes_per_s=8 * 100 * 2.0)
    assert predict(stored, Shape(1, partitions=1)).samples_per_s == pytest.approx(2, rel=0.02)


# ----------------------------------------------------------------------- what holds of any run

TAILS = {
    "workload.response_tokens": [4, 20, 40, 60, 90, 150, 400], "workload.group_size": 4, "workload.kept_share": 0.7,
    "engine.sequence_s": 0.0005, "engine.prefill_tokens_per_s": 5000.0, "workload.prompt_tokens": 30.0,
    "learner.token_s": 2e-4, "learner.fixed_s": 0.1, "learner.publish_s": 0.1, "weights.fetch_s": 0.2,
    "weights.pause_s": 0.05, "log.latency_s": 0.05, "gpu_hour_price": 2.0,
}  # fmt: skip


def tails(**values):
    return changed(plain(), {**TAILS, **{key.replace("__", "."): each for key, each in values.items()}})


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_no_prompt_is_lost_and_none_is_too_old(staleness):
    simulation = Simulation(tails(workload__max_staleness=staleness), Shape(3, 2), seed=5)
    for steps in range(1, 20):
        totals = simulation.run(steps)
        ended = totals.groups + totals.without_variance + totals.stale
        at_hand = simulation.asked - ended
        assert totals.groups == steps * 8
        assert ended <= simulation.answered <= simulation.asked
        assert 0 <= at_hand <= (1 + staleness) * 8, "as many as admission lets be under way"
        assert totals.staleness_max <= staleness
    assert totals.without_variance > 0


def test_a_simulation_drains_to_what_was_asked():
    """Every group that is not at the learner is in flight or waits for a place."""
    simulation = Simulation(tails(), Shape(2), seed=1)
    simulation.run(10)
    waiting = sum(number for number, _ in simulation._admitted)
    assert simulation.asked == simulation.answered + simulation._in_flight + waiting + on_the_way(simulation)


def on_the_way(simulation):
    """Groups that an engine has finished and the learner does not have."""
    return sum(getattr(handle, "func", None) == simulation._receive for _, _, handle in simulation._events)


@pytest.mark.parametrize("staleness", [0, 2])
def test_more_of_anything_is_never_slower(staleness):
    calibration = tails(workload__max_staleness=staleness)
    shapes = [[Shape(engines, 2) for engines in (1, 2, 4, 8)], [Shape(2, ranks) for ranks in (1, 2, 4, 8)]]
    for row in shapes:
        rates = [predict(calibration, shape, steps=400).samples_per_s for shape in row]
        assert all(more > 0.97 * less for less, more in pairwise(rates)), rates


def test_more_staleness_is_never_slower():
    rates = [predict(tails(workload__max_staleness=bound), Shape(2), steps=400).samples_per_s for bound in (0, 1, 2, 4)]
    assert all(more > 0.97 * less for less, more in pairwise(rates)), rates
    assert rates[1] > 1.2 * rates[0]


def test_equal_seeds_give_equal_results_and_others_others():
    first, second, other = (predict(tails(), Shape(3), seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_shares_of_the_time_add_up():
    found = predict(tails(), Shape(2, 1))
    assert 0 <= found.learner_idle + found.learner_held <= 1
    assert 0 <= found.engine_idle + found.engine_paused + found.engine_prefill <= 1
    assert found.generated_tokens_per_s >= found.tokens_per_s
    assert found.cost_per_million_tokens == pytest.approx(2.0 * 3 / 3600 / found.tokens_per_s * 1e6)


# ----------------------------------------------------------------------- lengths


def test_quantiles_keep_the_mean_of_a_long_tail():
    lengths = np.random.default_rng(0).lognormal(4, 1, 5000).clip(1, 4000)
    found = quantiles_of(lengths.tolist())
    assert mean_length(found) == pytest.approx(lengths.mean(), rel=0.02)
    assert list(found) == sorted(found)
    assert quantiles_of([7]) == (7.0,) * len(found)
