"""Intervals, against what is known of them by other ways."""

import random
from math import sqrt
from statistics import fmean, quantiles

import pytest

from pipelines.evaluation.benchmarks import BENCHMARKS, LABELS
from pipelines.evaluation.intervals import interval, mean_interval, replicate


def answers(right, wrong):
    return [("yes", "yes", number) for number in range(right)] + [("no", "yes", right + n) for n in range(wrong)]


def test_the_interval_of_an_accuracy_is_that_of_the_binomial_distribution():
    found = interval(replicate(answers(150, 50), LABELS.metrics, "0", 4000)["accuracy"])
    half = 1.96 * sqrt(0.75 * 0.25 / 200)
    assert found == pytest.approx((0.75 - half, 0.75 + half), abs=0.01)


def test_it_holds_the_truth_as_often_as_it_says():
    source, held = random.Random(3), 0
    for number in range(200):
        rows = [("yes" if source.random() < 0.7 else "no", "yes", place) for place in range(80)]
        low, high = interval(replicate(rows, LABELS.metrics, str(number), 200)["accuracy"])
        held += low <= 0.7 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_the_seed_decides_and_nothing_else():
    one, again, other = (replicate(answers(30, 20), LABELS.metrics, seed, 50) for seed in ("1", "1", "2"))
    assert one == again != other


def test_answers_of_a_question_are_drawn_together_and_a_question_drawn_twice_counts_twice():
    rows = [("yes", "yes", question) for question in ("a", "a", "a", "b", "b")]
    rows += [("no", "yes", question) for question in ("c", "c", "d")]
    found = replicate(rows, BENCHMARKS["multirc"].metrics, "0", 3000)["em"]
    # of four questions two are right: a share of so many of four draws, not of the different ones among them
    expected = {0: 1 / 16, 0.25: 4 / 16, 0.5: 6 / 16, 0.75: 4 / 16, 1: 1 / 16}
    assert {value: found.count(value) / 3000 for value in expected} == pytest.approx(expected, abs=0.03)


def test_the_ends_are_percentiles():
    values = [float(number) for number in range(1001)]
    assert interval(values) == pytest.approx((25, 975))
    assert interval([3.0, 3.0]) == (3.0, 3.0)


def test_a_mean_over_tasks_is_drawn_for_each_on_its_own():
    tasks = [replicate(answers(60, 40), LABELS.metrics, str(task), 4000) for task in range(4)]
    low, high = mean_interval(tasks)
    half = 1.96 * sqrt(0.6 * 0.4 / 100) / sqrt(4)
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.012)


def test_a_task_of_two_metrics_counts_once():
    twice = {"accuracy": [0.0, 1.0, 0.5], "f1": [1.0, 1.0, 0.0]}
    once = {"accuracy": [0.2, 0.4, 0.6]}
    values = [fmean(pair) for pair in zip([0.5, 1.0, 0.25], [0.2, 0.4, 0.6], strict=True)]
    ends = quantiles(values, n=40, method="inclusive")
    assert mean_interval([twice, once]) == pytest.approx((ends[0], ends[-1]))
