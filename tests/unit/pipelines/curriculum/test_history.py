"""What the records of a log say of the prompts, in whatever order its partitions are read."""

import itertools
from types import SimpleNamespace

import pytest

from pipelines.curriculum.history import History, Result, mark_of, results_in
from pipelines.curriculum.settings import Selection
from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import encode
from tests.support.curriculum import make_pool, make_result
from tests.support.samples import group

A, B, C = GroupId(0, 10), GroupId(1, 20), GroupId(0, 12)


@pytest.fixture
def pool():
    return make_pool(size=3)


@pytest.fixture
def history(pool):
    return History([pool], Selection(half_life=10))


def frontier(*offsets):
    return AdmissionFrontier(version=1, generation=1, frontier=dict(enumerate(offsets)))


def letter(place, stage="generate"):
    return DeadLetter.of(stage, "some_reason", "", ("demo.prompts", *place), b"")


def read(record):
    value, headers = record
    return list(results_in(SimpleNamespace(value=value, headers=list(headers.items()))))


def test_a_prompt_is_in_flight_until_it_is_answered(history, pool):
    history.note_prompt(A, "sums/1", 1)
    assert (pool.in_flight.tolist(), pool.draws.tolist()) == ([False, True, False], [0, 1, 0])
    assert (history.number, history.waiting, history.flying) == (1, 1, 1)
    history.note_result(Result(A, "sums/1", (1.0, 0.0, 0.0, 0.0), 23))
    assert not pool.in_flight.any()
    assert (pool.passes[1], pool.answers[1], pool.era[1]) == (1.0, 4.0, 2)
    assert (history.flying, history.version, history.era) == (0, 23, 2)


def test_an_answer_without_rewards_ends_the_flight_and_says_nothing(history, pool):
    history.note_prompt(A, "sums/1", 1)
    history.note_result(Result(A, "sums/1", (), 1))
    assert not pool.in_flight.any()
    assert pool.pass_rate(1) is None


def test_a_dead_letter_is_not_drawn_again_but_for_want_of_judges(history, pool):
    history.note_prompt(A, "sums/0", 1)
    history.note_prompt(B, "sums/1", 2)
    history.note_letter(letter(A))
    history.note_letter(letter(B, "join"))
    history.note_letter(letter(C))  # of another producer
    assert not pool.in_flight.any()
    assert pool.given_up.tolist() == [True, False, False]


def test_what_others_asked_of_the_same_prompt_counts_and_lands_nothing(history, pool):
    history.note_prompt(A, "sums/0", 1)
    history.note_result(Result(B, "sums/0", (1.0,), 1))
    history.note_result(Result(C, "other/7", (1.0,), 1))
    assert pool.in_flight.tolist() == [True, False, False]
    assert pool.answers.tolist() == [1.0, 0.0, 0.0]


def test_prompts_wait_until_they_are_admitted_also_those_of_tasks_that_are_gone(history):
    history.note_frontier(frontier(11, 0))
    for number, (place, name) in enumerate(((A, "sums/0"), (B, "sums/1"), (C, "gone/1")), start=1):
        history.note_prompt(place, name, number)
    assert history.waiting == 2
    history.note_frontier(frontier(13, 20))
    assert history.waiting == 1
    history.note_frontier(frontier(13, 21))
    assert (history.waiting, history.flying) == (0, 2)


def test_partitions_may_be_read_in_any_order():
    """The prompt was answered when it was drawn first, and is in flight now."""
    for order in itertools.permutations([(A, "sums/0", 1), (B, "sums/0", 7), (C, "sums/1", 4)]):
        pool = make_pool(size=3)
        history = History([pool], Selection())
        for each in order:
            history.note_prompt(*each)
        history.note_result(Result(A, "sums/0", (1.0,), 1))
        assert pool.in_flight.tolist() == [True, True, False]
        assert pool.draws.tolist() == [2, 1, 0]
        assert history.number == 7


def test_results_are_groups_of_rated_rows():
    record = encode(
        [
            *group(*A, 2, prompt_id="sums/0", reward=1.0),
            *group(*B, 2, prompt_id="sums/1", reward=None, reward_error="timeout"),
            *group(*C, 1, prompt_id="sums/2", reward=-1.0, purpose="correction"),
            *group(0, 14, 1, prompt_id=None),
        ]
    )
    assert read(record) == [Result(A, "sums/0", (1.0, 1.0), 12), Result(B, "sums/1", (), 12)]
    assert read(make_result(A, "sums/0", [0.0, None, 0.5], version=9)) == [Result(A, "sums/0", (0.0, 0.5), 9)]


@pytest.mark.parametrize("damage", ["value", "sha256", "reward"])
def test_what_cannot_be_read_is_no_result(damage):
    value, headers = make_result(A, "sums/0", [1.0])
    if damage == "value":
        value = value[:-9]
    elif damage == "sha256":
        headers |= {"sha256": b"0"}
    else:
        value, headers = make_result(A, "sums/0", [float("nan")])
        assert read((value, headers)) == [Result(A, "sums/0", (), 1)]
        return
    assert read((value, headers)) == []


def test_only_marked_prompts_are_its_own():
    prompt = Prompt(prompt_id="sums/0", text="1+1=", reward=RewardSpec(name="last_number"))
    marked = prompt.model_copy(update={"metadata": {"curriculum": {"number": 3, "pass_rate": None}}})
    assert mark_of(marked.encode()) == ("sums/0", 3)
    assert mark_of(prompt.encode()) is None
    told = prompt.model_copy(update={"text": 'a "curriculum" of studies'})
    assert mark_of(told.encode()) is None
    for value in (None, b"", b'"curriculum"', b'{"curriculum"', b"[" * 100_000 + b'"curriculum"'):
        assert mark_of(value) is None
    for number in (0, "3", None, True, 1.0):
        wrong = prompt.model_copy(update={"metadata": {"curriculum": {"number": number}}})
        assert mark_of(wrong.encode()) is None
