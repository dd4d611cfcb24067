"""How fast workers are taken to be, and what a slow one costs the others: simulated in virtual time."""

import heapq
import random

import pytest

from transforms.generation.pace import Pace, speeds
from transforms.generation.workers import Worker, choose

MEAN_S = 0.5


def paces(*given):
    """Of workers that have spent and answered so much."""
    return [Pace(spent_s=spent_s, answers=answers) for spent_s, answers in given]


def test_workers_of_which_nothing_is_known_are_equal():
    assert speeds(paces((0, 0), (0, 0))) == [1.0, 1.0]


def test_a_worker_that_takes_five_times_as_long_counts_for_a_fifth_of_another():
    slow, fast = speeds(paces((500.0, 200), (100.0, 200)))
    assert slow / fast == pytest.approx(1 / 5, rel=0.3)


def test_a_few_answers_say_little_and_a_worker_that_answers_nothing_says_much():
    new, stuck, normal = speeds(paces((2.0, 1), (300.0, 0), (50.0, 100)))
    assert new == pytest.approx(1.0, rel=0.3)
    assert stuck < 0.3 * normal


def test_nobody_counts_for_less_than_a_tenth_of_the_fastest():
    assert min(speeds(paces((1e6, 1), (50.0, 100)))) == pytest.approx(0.1 * max(speeds(paces((1e6, 1), (50.0, 100)))))


def test_requests_in_flight_count_and_failures_are_no_answers():
    pace = Pace()
    pace.begin(0.0)
    pace.begin(1.0)
    pace.advance(3.0)
    assert (pace.spent_s, pace.answers) == (5.0, 0)
    pace.end(4.0, answered=True)
    pace.end(5.0, answered=False)
    assert (pace.spent_s, pace.answers, pace.in_flight) == (8.0, 1, 0)


def test_what_was_long_ago_is_forgotten():
    pace = Pace(spent_s=1000.0, answers=10)
    for now_s in range(0, 200, 10):
        pace.advance(float(now_s))
    assert pace.spent_s < 1.0


def answered(slowness, *, in_flight=64, slots=1000, until_s=60.0, fair=True):
    """How many requests each worker has answered in the end, with so many in flight all the time.

    A worker computes ``slots`` requests at once, each for a mean of 0.5 s times its slowness.
    """
    draw, workers = random.Random(1), [Worker(f"http://{number}") for number in range(len(slowness))]
    events, done = [], dict.fromkeys(workers, 0)
    free_at = {worker: [0.0] * slots for worker in workers}
    slow = dict(zip(workers, slowness, strict=True))

    def ask(now_s):
        if fair:
            for worker, speed in zip(workers, speeds([worker.pace for worker in workers]), strict=True):
                worker.pace.advance(now_s)
                worker.speed = speed
        worker = choose(workers, [draw.randrange(1000)], 1)
        worker.load += 1
        worker.pace.begin(now_s)
        begins_s = max(now_s, heapq.heappop(free_at[worker]))
        ends_s = begins_s + draw.expovariate(1 / (MEAN_S * slow[worker]))
        heapq.heappush(free_at[worker], ends_s)
        heapq.heappush(events, (ends_s, workers.index(worker)))

    for _ in range(in_flight):
        ask(0.0)
    while events[0][0] < until_s:
        now_s, number = heapq.heappop(events)
        workers[number].load -= 1
        workers[number].pace.end(now_s, answered=True)
        done[workers[number]] += now_s > until_s / 3
        ask(now_s)
    return list(done.values())


def test_a_slow_worker_does_not_hold_the_places_of_the_others():
    normal, beside = sum(answered([1, 1, 1, 1])[1:]), sum(answered([5, 1, 1, 1])[1:])
    assert beside / normal > 1.05
    held = sum(answered([5, 1, 1, 1], fair=False)[1:])
    assert held / normal < 0.97, "with places shared evenly it does"


def test_full_engines_stay_full_beside_a_slow_one():
    normal, beside = answered([1, 1, 1, 1], slots=12), answered([5, 1, 1, 1], slots=12)
    assert sum(beside[1:]) / sum(normal[1:]) > 0.97
    assert sum(beside) > sum(answered([5, 1, 1, 1], slots=12, fair=False)), "and all do more than with even shares"
    assert beside[0] > 0, "its recovery would be noticed"


def test_equal_workers_get_equal_work():
    done = answered([1, 1, 1, 1], slots=12)
    assert max(done) / min(done) < 1.1


def test_a_worker_that_is_twice_as_fast_does_more():
    done = answered([1, 1, 1, 0.5], slots=12, in_flight=80)
    assert done[3] / done[0] == pytest.approx(2, rel=0.15)
