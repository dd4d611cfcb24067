"""What becomes of events: groups, bad records, dead letters."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from tests.support.samples import group
from trainers.accounts import Accounts, Versions
from trainers.intake import Intake
from trainers.planner import Arrival, Planner
from trainers.stream import Fault, Letter, Parked

CONFIG = RunConfig()
VOCABULARY = 100


@pytest.fixture
def intake():
    planner = Planner(2, 1, Accounts(), Versions({11: 0, 12: 1}))
    return Intake(CONFIG, planner, SimpleNamespace(frontier={0: 40, 1: 40}), VOCABULARY)


def arrival(offset=38, at=(0, 7), **changes):
    samples = group(offset=offset, **changes)
    return Arrival(GroupId(0, offset), at, (replace(samples[0], reward=0.0), *samples[1:]))


def finished(intake, offset=38):
    return intake._planner.accounts.is_finished(GroupId(0, offset))


def test_an_admitted_group_waits_for_its_step(intake):
    intake.take(arrival())
    assert list(intake._planner.waiting) == [GroupId(0, 38)]
    assert not intake.letters


def test_a_group_that_was_never_admitted_is_a_dead_letter_of_its_record(intake):
    intake.take(arrival(offset=40))
    assert [(letter.topic, letter.reason) for letter in intake.letters] == [("demo.trajectories", "not_admitted")]
    assert not intake._planner.waiting


@pytest.mark.parametrize("field", ["prompt_token_ids", "response_token_ids"])
def test_a_token_that_the_model_does_not_know_makes_the_group_a_dead_letter(intake, field):
    intake.take(arrival(**{field: (3, VOCABULARY, 4)}))
    assert [(letter.topic, letter.offset, letter.reason) for letter in intake.letters] == [
        ("demo.prompts", 38, "bad_row")
    ]
    assert finished(intake)
    assert not intake._planner.waiting


def test_a_bad_record_ends_the_unfinished_groups_that_it_names(intake):
    intake.take(Fault((0, 9), (GroupId(0, 38),), "bad_sha256", "…", b"x"))
    assert [(letter.topic, letter.offset) for letter in intake.letters] == [("demo.prompts", 38)]
    assert finished(intake)


def test_a_bad_copy_of_what_is_known_is_a_dead_letter_of_its_own_once(intake):
    intake.take(arrival())
    for _ in range(2):
        intake.take(Fault((0, 9), (GroupId(0, 38),), "bad_sha256", "…", b"x"))
    assert [(letter.topic, letter.offset) for letter in intake.letters] == [("demo.trajectories", 9)]
    assert not finished(intake)


def test_a_prompt_that_an_earlier_stage_gave_up_is_finished(intake):
    letter = DeadLetter.of("generate", "engine_failed", "…", ("demo.prompts", 0, 38), b"{}")
    intake.take(Letter(letter))
    assert finished(intake)


def late(partition, purpose, size=1, at=(0, 7), **changes):
    """A group that is no prompt."""
    samples = group(partition, 10**15, size, purpose=purpose, **changes)
    return Arrival(samples[0].group, at, tuple(samples))


@pytest.mark.parametrize(
    ("partition", "purpose"),
    [(EXCHANGES, "feedback"), (EXCHANGES + 3, "feedback"), (FEEDBACK, "correction"), (FEEDBACK + 1, "demonstration")],
)
def test_what_is_no_prompt_needs_no_admission_and_is_not_counted(intake, partition, purpose):
    intake.take(late(partition, purpose))
    planner = intake._planner
    assert list(planner.waiting) == [GroupId(partition, 10**15)]
    assert not intake.letters
    assert planner.accounts.finish(GroupId(partition, 10**15))
    assert planner.accounts.count == planner.accounts.released == 0


@pytest.mark.parametrize(
    "hostile",
    [
        late(EXCHANGES, "train"),
        late(EXCHANGES, "demonstration"),
        late(FEEDBACK, "feedback"),
        late(FEEDBACK, "demonstration", size=2),
        late(FEEDBACK, "demonstration", reward=-1.0),
        late(FEEDBACK, "demonstration", response_token_ids=(3, VOCABULARY, 4)),
    ],
    ids=["exchange as prompt", "exchange as text", "rated", "two rows", "weight below 0", "token"],
)
def test_what_a_group_may_not_be_is_a_dead_letter_of_its_record_once(intake, hostile):
    for _ in range(2):
        intake.take(hostile)
    assert [(letter.topic, letter.offset, letter.reason) for letter in intake.letters] == [
        ("demo.trajectories", 7, "bad_row")
    ]
    assert not intake._planner.waiting
    assert not intake._planner.accounts.is_finished(hostile.group), "a good one may still come"


def test_a_prompt_whose_rows_say_that_it_is_a_correction_is_written_off(intake):
    intake.take(arrival(purpose="correction"))
    assert [(letter.topic, letter.offset, letter.reason) for letter in intake.letters] == [
        ("demo.prompts", 38, "bad_row")
    ]
    assert "expected train or feedback" in intake.letters[0].detail
    assert finished(intake)


def test_rows_of_two_purposes_are_no_group(intake):
    one, two = arrival().samples
    intake.take(Arrival(GroupId(0, 38), (0, 7), (one, replace(two, purpose="feedback"))))
    assert "purpose feedback and train" in intake.letters[0].detail


def test_a_bad_record_that_names_an_exchange_ends_nothing_but_itself(intake):
    intake.take(Fault((0, 9), (GroupId(EXCHANGES, 5),), "bad_sha256", "…", b"x"))
    assert [(letter.topic, letter.offset) for letter in intake.letters] == [("demo.trajectories", 9)]
    assert not intake._planner.accounts.is_finished(GroupId(EXCHANGES, 5))


def test_an_admitted_prompt_that_is_pending_is_parked_once_and_then_finished_once(intake):
    accounts = intake._planner.accounts
    for _ in range(2):
        intake.take(Parked((GroupId(0, 38), GroupId(0, 40), GroupId(EXCHANGES, 3))))
    assert accounts.parked == {GroupId(0, 38)}, "40 was not admitted, and an exchange never is"
    assert (accounts.count, accounts.released) == (0, 1)
    intake.take(Letter(DeadLetter.of("join", "expired", "…", ("demo.prompts", 0, 38), b"{}")))
    assert finished(intake)
    assert (accounts.parked, accounts.count, accounts.released) == (set(), 1, 1)
    intake.take(Parked((GroupId(0, 38),)))
    assert (accounts.parked, accounts.released) == (set(), 1)


def test_a_parked_prompt_that_was_rated_waits_for_its_step_and_stays_parked_until_then(intake):
    accounts, planner = intake._planner.accounts, intake._planner
    intake.take(arrival(purpose="feedback"))  # the two topics are read in any order
    intake.take(Parked((GroupId(0, 38),)))
    assert list(planner.waiting) == [GroupId(0, 38)]
    assert (accounts.count, accounts.released) == (0, 1)
    accounts.finish(GroupId(0, 38))
    assert (accounts.count, accounts.released) == (1, 1)
