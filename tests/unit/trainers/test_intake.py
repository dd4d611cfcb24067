"""What becomes of events: groups, bad records, dead letters."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from tests.support.samples import group
from trainers.accounts import Accounts, Versions
from trainers.intake import Intake
from trainers.planner import Arrival, Planner
from trainers.stream import Fault, Letter

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
