"""A report of a run with faults names the fault: literal entries of the log, and what is said of them."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.audit import audit
from pipelines.log import RunLog
from pipelines.report import faults
from pipelines.report.flow import Flow, Timeline
from pipelines.report.gather import Gathered
from pipelines.report.logs import Said
from pipelines.report.samples import SampleBook
from schemas.dead_letters import DeadLetter
from schemas.ledger import CheckpointEntry, DroppedGroup, Position, StartEntry, StepEntry, TrainedGroup
from schemas.weights import WeightVersion

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)
TRAINED = TrainedGroup(group=(0, 38), at=(1, 17), attempt="a", samples=4, versions=(1, 1))


def at(seconds):
    return BEGAN + timedelta(seconds=seconds)


def step(number, seconds, generation=1, trained=(TRAINED,), dropped=(), **metrics):
    return StepEntry(
        generation=generation, step=number, version=number + 1, trained=trained, dropped=dropped, metrics=metrics,
        at=at(seconds),
    )  # fmt: skip


def saved(number, seconds):
    return CheckpointEntry(generation=1, step=number, manifest_sha256="a" * 64, at=at(seconds))


def started(generation, seconds, after, **more):
    return StartEntry(generation=generation, continues=Position(generation=generation - 1, step=after),
                      at=at(seconds), **more)  # fmt: skip


FIRST = StartEntry(generation=1, at=BEGAN)


def test_a_learner_that_was_killed_and_restarted_is_named():
    ledger = [FIRST, step(1, 2), step(2, 4), saved(2, 5), step(3, 6), step(4, 8), started(2, 20, 2)]
    (fault,) = faults.restarts(ledger)
    assert fault.kind == "restart"
    assert fault.text == (
        "learner restarted after step 4: generation 1 was killed, crashed or was fenced, "
        "generation 2 went on from step 2"
    )
    assert fault.detail == (
        "steps 3 to 4 of generation 1 left the surviving line; "
        "12 s after the last entry of generation 1, which it fences"
    )
    assert fault.at == at(20)


def test_a_learner_that_ended_in_good_order_is_told_from_one_that_was_killed():
    (fault,) = faults.restarts([FIRST, step(1, 2), step(2, 4), saved(2, 5), started(2, 20, 2)])
    assert "ended in good order" in fault.text
    assert "no step was lost" in fault.detail


def test_a_checkpoint_of_a_line_that_died_says_nothing_of_the_next_end():
    ledger = [
        FIRST,
        step(1, 2),
        saved(1, 3),
        step(2, 4),
        saved(2, 5),
        started(2, 9, 1),
        step(2, 12, 2),
        started(3, 20, 1),
    ]
    assert ["good order" in fault.text for fault in faults.restarts(ledger)] == [True, False]


def test_steps_that_were_given_up_are_named():
    (fault,) = faults.restarts([FIRST, saved(0, 1), step(1, 2), step(3, 4), started(2, 20, 0, gives_up=(1, 3))])
    assert "steps 1, 3 given up, gradients were not finite" in fault.detail


def test_a_step_whose_gradient_was_not_finite_is_named():
    lost = DroppedGroup(group=(0, 5), at=(0, 5), reason="nonfinite")
    (fault,) = faults.skipped_steps([FIRST, step(1, 2), step(2, 4, trained=(), dropped=(lost,))])
    assert fault.text == "step 2 of generation 1 was skipped: its gradient was not finite"


def test_weights_that_had_to_be_announced_again_are_named():
    facts = {"manifest_sha256": "a" * 64, "dtype": "float32", "base_model": "m", "published_at": BEGAN}
    told = [(1, 0, 1), (2, 1, 1), (3, 1, 1), (4, 1, 2)]
    weights = [WeightVersion(version=v, step=s, generation=g, **facts) for v, s, g in told]
    (fault,) = faults.announced_again(weights)
    assert fault.text == "weights of step 1 were announced again: version 3 after 2"


def stalled(answered):
    timeline = Timeline()
    for second in range(answered):
        timeline.add("answered", at(10 + second))
    steps = [step(n, 2 * n, seconds_wait=1.5) for n in range(1, 5)]
    late = step(5, 60, seconds_wait=51.0, seconds_train=1.0)
    (fault,) = faults.stalls([*steps, late], timeline)
    return fault


def test_a_stall_says_what_was_waited_for_and_what_the_engines_did():
    fault = stalled(answered=1)
    assert fault.text == "52 s without a step between steps 4 and 5 (usually 2.0 s)"
    assert fault.detail.startswith("the learner waited for groups for 51 s; 1 group answered in that time: an engine,")
    assert stalled(answered=40).detail.endswith("40 groups answered in that time")


def test_a_pause_between_generations_is_the_restart_and_not_a_stall():
    steps = [*(step(n, 2 * n) for n in range(1, 5)), step(5, 90, generation=2)]
    assert list(faults.stalls(steps, Timeline())) == []


@pytest.fixture
def gathered():
    letters = [DeadLetter.of("generate", "not_json", "no JSON", ("x.prompts", 0, n), b"x") for n in (3, 9)]
    letters.append(DeadLetter.of("learn", "bad_sha256", "rotten", ("x.trajectories", 1, 4), b"x"))
    drop = DroppedGroup(group=(0, 6), at=(0, 6), reason="unknown_version")
    usual = DroppedGroup(group=(0, 7), at=(0, 7), reason="zero_variance")
    log = RunLog(ledger=[FIRST, step(1, 2, dropped=(drop, usual))], dead_letters=letters)
    flow = Flow()
    flow.reward_errors["reward_timeout"] = 12
    said = [Said("rollout", "warning", "worker_down", "reason=x", at(7)), Said("rollout", "warning", "slow", "", at(7)),
            Said("learner", "ended", "learn", "FencedError: a newer learner", None, 2)]  # fmt: skip
    return Gathered("x", log, SampleBook(), flow, said=said)


def test_dead_letters_drops_null_rewards_and_logs_are_named_and_broken_promises_come_first(gathered):
    line = [gathered.log.ledger[1]]
    found = faults.find_faults(gathered, audit("x", gathered.log), line)
    texts = {fault.text: fault.detail for fault in found}
    assert texts["2 dead letters in generate: not_json"] == "first x.prompts/0/3: no JSON"
    assert "1 dead letter in learn: bad_sha256" in texts
    assert texts["1 group dropped: unknown_version"] == "first 0/6 in step 1"
    assert "12 answers without a reward: reward_timeout" in texts
    assert texts["rollout logged worker down"] == "reason=x"
    assert texts["asyncflow learn ended with a message (2 times)"] == "FencedError: a newer learner"
    assert not any("zero_variance" in text or "slow" in text for text in texts)
    assert found[0].is_grave
    assert found[0].text.startswith("a promise is broken: ")


def test_a_clean_run_has_no_faults():
    log = RunLog(ledger=[FIRST])
    assert faults.find_faults(Gathered("x", log, SampleBook(), Flow()), audit("x", log), []) == []
