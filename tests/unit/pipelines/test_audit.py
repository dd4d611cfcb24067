"""The audit finds every broken promise: each test breaks exactly one thing in a clean log."""

from dataclasses import replace

import pytest

from pipelines.audit import audit
from pipelines.log import GroupRecord, RunLog
from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from schemas.ledger import DroppedGroup, Position, Settings, StartEntry, StepEntry, TrainedGroup
from schemas.offsets import OffsetSet
from schemas.weights import WeightVersion

SETTINGS = Settings(max_staleness=1, groups_per_step=2)


def weight(version, step, generation=1):
    return WeightVersion(
        version=version, step=step, generation=generation, manifest_sha256="a" * 64, dtype="float32", base_model="m"
    )


def record(offset, version=1, attempt="a"):
    group = GroupId(0, offset)
    return GroupRecord(group, (0, 10 * offset), attempt, 4, (version, version), frozenset({version}), "train")


def trained(offset, version=1):
    return TrainedGroup(
        group=GroupId(0, offset), at=(0, 10 * offset), attempt="a", samples=4, versions=(version, version)
    )


def dropped(offset, reason="zero_variance"):
    return DroppedGroup(group=GroupId(0, offset), at=(0, 10 * offset), reason=reason)


def step(number, groups, drops=(), generation=1, version=None):
    return StepEntry(
        generation=generation, step=number, version=version or number + 1, trained=tuple(groups), dropped=tuple(drops)
    )


def letter(offset):
    return DeadLetter.of("generate", "not_json", "x", ("demo.prompts", 0, offset), b"x")


def commit(log, *entries):
    """Appends entries as the learner does: a step with its weights and its frontier."""
    for entry in entries:
        log.ledger.append(entry)
        if isinstance(entry, StepEntry):
            frontier = log.admission[-1].frontier
            log.admission.append(
                AdmissionFrontier(version=entry.version, generation=entry.generation, frontier=frontier)
            )
            if entry.trained and entry.version not in {version.version for version in log.weights}:
                log.weights.append(weight(entry.version, entry.step, entry.generation))


@pytest.fixture
def log():
    """Two steps of two groups, one drop, one dead letter, one group waiting, one in flight."""
    return RunLog(
        prompts={0: list(range(10))},
        groups=[record(0), record(1), record(2, 2), record(3, 2), record(5), record(6, 2)],
        weights=[weight(1, 0), weight(2, 1), weight(3, 2)],
        admission=[
            AdmissionFrontier(version=1, generation=1, frontier={0: 4}),
            AdmissionFrontier(version=2, generation=1, frontier={0: 6}),
            AdmissionFrontier(version=3, generation=1, frontier={0: 8}),
        ],
        ledger=[
            StartEntry(generation=1, settings=SETTINGS),
            step(1, [trained(0), trained(1)]),
            step(2, [trained(2, 2), trained(3, 2)], [dropped(5)]),
        ],
        dead_letters=[letter(4)],
        finished={0: OffsetSet(7)},
    )


def test_a_clean_log_passes_and_everything_is_counted(log):
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    counted = verdict.model_dump(include={"admitted", "trained", "dropped", "dead_letters", "waiting", "in_flight"})
    assert counted == {
        "admitted": 8, "trained": 4, "dropped": {"zero_variance": 1}, "dead_letters": 1, "waiting": 1, "in_flight": 1,
    }  # fmt: skip
    assert (verdict.steps, verdict.staleness_max, verdict.staleness_bound) == (2, 0, 1)


def broken(log, kind, number=1):
    verdict = audit("demo", log)
    assert not verdict.ok
    assert any(fault.startswith(kind) for fault in verdict.faults)
    assert getattr(verdict, kind, number) == number
    return verdict


def test_a_prompt_that_was_committed_without_an_outcome_is_lost(log):
    log.finished = {0: OffsetSet(8)}
    broken(log, "lost")


def passed_over(log, version):
    """Group 6, answered by ``version``, lies before what steps 2 and 3 trained."""
    log.groups = [*log.groups[:-1], replace(record(6, version), at=(0, 15)), record(7, 3)]
    commit(log, step(3, [trained(7, 3)]))
    log.finished = {0: OffsetSet(8)}


def test_a_group_that_the_learner_passed_over_until_it_was_too_old_is_lost(log):
    passed_over(log, version=1)
    broken(log, "lost")


def test_a_group_that_the_learner_still_holds_waits(log):
    passed_over(log, version=2)
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert verdict.waiting == 1


def test_a_lost_dead_letter_is_a_lost_prompt(log):
    log.dead_letters = []
    broken(log, "lost")


def test_a_group_in_two_steps_is_a_duplicate(log):
    log.ledger[2] = step(2, [trained(2, 2), trained(0)], [dropped(5), dropped(3)])
    broken(log, "duplicate")


def test_a_group_that_is_trained_and_dropped_is_a_duplicate(log):
    log.ledger[2] = step(2, [trained(2, 2), trained(3, 2)], [dropped(5), dropped(3)])
    broken(log, "duplicate")


def test_a_second_attempt_that_was_refused_as_duplicate_is_none(log):
    log.groups.append(replace(record(0, attempt="b"), at=(0, 49)))
    log.ledger[2] = step(2, [trained(2, 2), trained(3, 2)], [dropped(5), dropped(0, "duplicate")])
    assert audit("demo", log).ok


def test_a_step_in_a_dead_line_and_again_in_the_new_one_is_no_duplicate(log):
    log.weights += [weight(4, 1, 2), weight(5, 2, 2)]
    commit(
        log,
        StartEntry(generation=2, continues=Position(generation=1, step=1), settings=SETTINGS),
        step(2, [trained(2, 2), trained(3, 2)], [dropped(5)], generation=2, version=5),
    )
    assert audit("demo", log).ok


def test_an_attempt_other_than_the_ledgers_is_mixed(log):
    log.groups[0] = replace(log.groups[0], attempt="b")
    broken(log, "mixed_attempts")


def test_a_trained_group_without_a_record_is_mixed(log):
    del log.groups[0]
    broken(log, "mixed_attempts")


def test_a_version_that_was_never_announced_is_unknown(log):
    log.weights[1:2] = []
    verdict = broken(log, "unknown_versions", 2)
    assert "[2]" in verdict.faults[0]


def test_staleness_is_counted_again_from_the_records(log):
    commit(log, step(3, [trained(6, 1), trained(7, 1)]))
    log.groups[-1:] = [record(6, 1), record(7, 1)]
    log.finished = {0: OffsetSet(8)}
    assert broken(log, "staleness").staleness_max == 2


def test_a_step_that_trained_nothing_ages_no_sample(log):
    commit(log, step(3, [], version=3), step(4, [], version=3), step(5, [trained(6, 2), trained(7, 2)]))
    log.groups += [record(7, 2)]
    log.finished = {0: OffsetSet(8)}
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert verdict.staleness_max == 1


def test_a_restart_does_not_age_samples(log):
    log.weights += [weight(7, 2, 2), weight(8, 3, 2)]
    commit(
        log,
        StartEntry(generation=2, continues=Position(generation=1, step=2), settings=SETTINGS),
        step(3, [trained(6, 2), trained(7, 3)], generation=2, version=8),
    )
    log.groups += [record(7, 3)]
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert verdict.staleness_max == 1


def test_a_commit_of_a_replaced_generation_is_a_zombie(log):
    commit(
        log,
        StartEntry(generation=2, continues=Position(generation=1, step=2), settings=SETTINGS),
        step(3, [], generation=1),
    )
    broken(log, "zombie_commits")


def test_admitting_more_than_the_bound_is_found(log):
    log.admission.append(AdmissionFrontier(version=3, generation=1, frontier={0: 10}))
    log.prompts = {0: list(range(40))}
    log.admission.append(AdmissionFrontier(version=3, generation=1, frontier={0: 14}))
    broken(log, "admission_excess", 14 - (3 + 1) * 2 - 1 - 1 - 1)


def test_a_frontier_that_goes_back_is_found(log):
    log.admission.append(AdmissionFrontier(version=3, generation=1, frontier={0: 7}))
    broken(log, "frontier")


def test_a_version_that_is_used_twice_is_found(log):
    log.weights.append(weight(3, 2))
    broken(log, "versions")


def test_an_unreadable_record_counts_unless_a_dead_letter_tells_of_it(log):
    log.unreadable.append("demo.trajectories/0/70: bad_sha256: …")
    broken(log, "unreadable")
    log.dead_letters.append(DeadLetter.of("learn", "bad_sha256", "x", ("demo.trajectories", 0, 70), b"x"))
    assert audit("demo", log).ok


def test_a_step_without_its_weights_is_half_a_commit(log):
    log.weights.pop()
    broken(log, "half_commits")


def test_a_step_without_its_frontier_is_half_a_commit(log):
    del log.admission[1]
    broken(log, "half_commits")


def test_weights_without_a_step_are_half_a_commit(log):
    log.weights.append(weight(4, 3))
    broken(log, "half_commits")


def test_weights_that_are_announced_again_between_two_steps_are_whole(log):
    log.weights.append(weight(4, 2))
    assert audit("demo", log).ok


def test_a_copy_that_somebody_else_wrote_is_counted(log):
    log.groups.append(replace(record(0), at=(0, 49)))
    log.ledger[2] = step(2, [trained(2, 2), trained(3, 2)], [dropped(5), dropped(0, "duplicate")])
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert verdict.repeated == 1


def spanning(offset, *versions):
    """A group over several versions, as trajectories and ledger have it."""
    first, last = min(versions), max(versions)
    found = replace(record(offset), versions=(first, last), spanned=frozenset(versions))
    return found, trained(offset).model_copy(update={"versions": (first, last)})


def test_tokens_that_were_left_out_make_nothing_stale(log):
    found, ledger = spanning(6, 1, 3)
    log.groups[-1] = found
    left_out = step(3, [ledger]).model_copy(update={"too_old": (1,)})
    commit(log, left_out)
    assert audit("demo", log).staleness_max == 0
    log.ledger[-1] = step(3, [ledger])
    assert audit("demo", log).staleness_max == 2


@pytest.mark.parametrize(("by_token", "lost"), [(None, 1), (1, 0)])
def test_a_group_that_has_young_tokens_may_wait_if_tokens_are_judged_one_by_one(log, by_token, lost):
    """It lies before what the learner has consumed, and its oldest token is too old."""
    log.ledger[0] = StartEntry(generation=1, settings=SETTINGS.model_copy(update={"max_token_staleness": by_token}))
    log.groups[-1] = replace(spanning(6, 1, 3)[0], at=(0, 15))
    commit(log, step(3, []), step(4, []))
    log.groups += [record(7, 3)]
    commit(log, step(5, [trained(7, 3)]))
    assert audit("demo", log).lost == lost


def late(partition, offset, purpose, *, version=1, samples=1, at=None):
    """A group that people judged or wrote, as trajectories and ledger have it."""
    group, at = GroupId(partition, offset), at or (1, offset)
    found = GroupRecord(group, at, "a", samples, (version, version), frozenset({version}), purpose)
    return found, TrainedGroup(group=group, at=at, attempt="a", samples=samples, versions=(version, version))


LATE = [late(EXCHANGES, 0, "feedback"), late(FEEDBACK, 1, "correction"), late(FEEDBACK, 2, "demonstration")]


def train(log, *found):
    """A third step of groups and nothing else."""
    log.groups += [record for record, _ in found]
    commit(log, step(3, [ledger for _, ledger in found]))


def with_bound(log, bound):
    log.ledger[0] = StartEntry(generation=1, settings=SETTINGS.model_copy(update={"max_feedback_staleness": bound}))


def test_groups_that_are_no_prompts_are_trained_without_being_admitted(log):
    with_bound(log, 4)
    train(log, *LATE)
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert verdict.trained == 7
    assert verdict.trained_by_purpose == {"train": 4, "feedback": 1, "correction": 1, "demonstration": 1}
    assert (verdict.admitted, verdict.waiting, verdict.in_flight) == (8, 1, 1)


def test_a_contribution_in_two_steps_is_a_duplicate(log):
    train(log, *LATE)
    commit(log, step(4, [LATE[1][1]]))
    broken(log, "duplicate")


def test_a_contribution_of_another_record_than_the_ledgers_is_mixed(log):
    train(log, *LATE)
    log.groups[-1] = replace(log.groups[-1], attempt="b")
    broken(log, "mixed_attempts")


def test_a_contribution_of_a_version_that_was_never_announced_is_unknown(log):
    train(log, late(FEEDBACK, 1, "correction", version=9))
    log.ledger[0] = StartEntry(generation=1, settings=SETTINGS)
    broken(log, "unknown_versions")


@pytest.mark.parametrize(
    ("partition", "purpose", "samples"),
    [(EXCHANGES, "train", 1), (EXCHANGES, "correction", 1), (FEEDBACK, "feedback", 1), (FEEDBACK, "demonstration", 2),
     (0, "demonstration", 1), (0, "feedback+train", 2)],
)  # fmt: skip
def test_what_was_trained_as_something_that_its_id_does_not_allow_is_found(log, partition, purpose, samples):
    train(log, late(partition, 7, purpose, samples=samples))
    broken(log, "misplaced")


def test_staleness_is_bounded_by_purpose(log):
    """Version 1 in step 3 is two updates old: too old for an answer, not for feedback; a demonstration has no age."""
    with_bound(log, 2)
    train(log, *LATE)
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert (verdict.staleness_max, verdict.staleness_bound) == (0, 1)
    assert (verdict.feedback_staleness_max, verdict.feedback_staleness_bound) == (2, 2)
    with_bound(log, 1)
    assert broken(log, "staleness").feedback_staleness_max == 2
    log.groups = [replace(record, purpose="demonstration") if record.group.partition > 0 else record
                  for record in log.groups]  # fmt: skip
    assert audit("demo", log).feedback_staleness_max == 0


def test_a_prompt_that_waits_for_feedback_is_parked_and_neither_lost_nor_in_flight(log):
    log.finished = {0: OffsetSet(8)}
    log.pending = [record(7), late(EXCHANGES, 3, "feedback")[0]]
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert (verdict.parked, verdict.in_flight, verdict.waiting, verdict.lost) == (1, 0, 1, 0)


@pytest.mark.parametrize("end", ["joined", "trained", "expired"])
def test_a_parked_prompt_is_parked_until_it_ends(log, end):
    log.finished = {0: OffsetSet(8)}
    log.pending = [record(7)]
    if end == "expired":
        log.dead_letters.append(DeadLetter.of("join", "expired", "x", ("demo.prompts", 0, 7), b"x"))
    else:
        log.groups.append(replace(record(7), purpose="feedback"))
    if end == "trained":
        commit(log, step(3, [trained(7)]))
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert (verdict.parked, verdict.in_flight, verdict.lost) == (0, 0, 0)
    assert (verdict.waiting, verdict.dead_letters) == (1 + (end == "joined"), 1 + (end == "expired"))


def test_a_prompt_that_expired_and_was_trained_is_a_duplicate(log):
    log.pending = [record(3, 2)]
    log.dead_letters.append(DeadLetter.of("join", "expired", "x", ("demo.prompts", 0, 3), b"x"))
    broken(log, "duplicate")


def test_parked_prompts_make_room_and_those_in_flight_do_not(log):
    """14 are admitted; of these 7 to 13 did not end, and two steps of two may be under way."""
    log.admission.append(AdmissionFrontier(version=3, generation=1, frontier={0: 14}))
    log.prompts = {0: list(range(40))}
    log.pending = [record(offset) for offset in (7, 8, 9)]
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert (verdict.parked, verdict.in_flight) == (3, 4)
    log.pending.pop()
    broken(log, "admission_excess", 1)


def test_steps_of_feedback_admit_no_prompts(log):
    """Three groups that nobody admitted fill a step; it makes no room for prompts."""
    train(log, *LATE)
    log.admission.append(AdmissionFrontier(version=4, generation=1, frontier={0: 12}))
    log.prompts = {0: list(range(40))}
    broken(log, "admission_excess", 1)


def consume_behind(log, steps):
    """In each of these steps the learner trains a record that lies behind all others."""
    for number in steps:
        behind, ledger = late(EXCHANGES, 100 + number, "feedback", version=number)
        log.groups.append(behind)
        commit(log, step(number, [ledger]))


@pytest.mark.parametrize(
    ("purpose", "partition", "lost"),
    [("feedback", EXCHANGES, 1), ("correction", FEEDBACK, 1), ("demonstration", FEEDBACK, 0)],
)
def test_feedback_that_the_learner_passed_over_until_it_was_too_old_is_lost(log, purpose, partition, lost):
    with_bound(log, 2)
    log.groups.append(late(partition, 1, purpose, version=3)[0])
    consume_behind(log, (3, 4, 5))
    assert audit("demo", log).lost == 0, "it may still be held"
    consume_behind(log, (6,))
    verdict = audit("demo", log)
    assert verdict.lost == lost, verdict.faults


def test_what_the_learner_refused_is_not_missed(log):
    log.groups.append(late(EXCHANGES, 0, "train", at=(1, 5))[0])
    assert audit("demo", log).waiting == 2
    log.dead_letters.append(DeadLetter.of("learn", "bad_row", "x", ("demo.trajectories", 1, 5), b"x"))
    verdict = audit("demo", log)
    assert verdict.ok, verdict.faults
    assert verdict.waiting == 1
