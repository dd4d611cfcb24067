"""What became of judgements, from literal records."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.gateway import fates as module
from pipelines.gateway.fates import Fates
from pipelines.gateway.judging import Accepted
from schemas.feedback import Feedback
from schemas.identity import EXCHANGES, FEEDBACK, GroupId, RolloutId
from schemas.joining import FeedbackConfig
from schemas.ledger import DroppedGroup, Position, StartEntry, StepEntry, TrainedGroup
from schemas.outcomes import FeedbackFate, Outcome, Vote
from schemas.weights import WeightVersion

GROUP = GroupId(EXCHANGES, 7)
ROLLOUT = RolloutId("demo", *GROUP, 0)
NOW = datetime.now(UTC)


@pytest.fixture
def fates():
    return Fates(FeedbackConfig(settle_s=1800))  # longer than the tests take


def judgement(number, *, user="ann", kind="thumb", value=1.0, at=NOW, rollout=ROLLOUT):
    given = Feedback(
        feedback_id=f"f-{number}", rollout_id=str(rollout), kind=kind, value=value, user=user, at=at
    )  # fmt: skip
    return Accepted(given, (0, number))


def outcome(kind, *given, contributions=(), votes=(), rewards=None, group=GROUP):
    told = tuple(FeedbackFate(at=(0, number), fate=fate, id=f"f-{number}") for number, fate in given)
    return Outcome(
        kind=kind, group=group, feedback=told, contributions=contributions, votes=votes, rewards=rewards or {}
    )  # fmt: skip


def step(number, *groups, version=None, generation=1, dropped=()):
    trained = tuple(TrainedGroup(group=each, at=(0, 0), attempt="a", samples=1, versions=(1, 1)) for each in groups)
    left = tuple(DroppedGroup(group=each, at=(0, 0), reason=reason) for each, reason in dropped)
    return StepEntry(generation=generation, step=number, version=version or number + 1, trained=trained, dropped=left)


def states(fates, user="ann"):
    return [(each.feedback_id, each.state) for each in fates.report(ROLLOUT, user).judgements]


def test_a_judgement_is_received_then_waits(fates):
    fates.receive(judgement(1))
    fates.receive(judgement(2, at=NOW - timedelta(seconds=1801)))
    assert states(fates) == [("f-1", "received"), ("f-2", "waiting")]
    assert fates.report(ROLLOUT, "ann").judgements[0].decided_by == NOW + timedelta(seconds=1800)


def test_a_used_judgement_tells_the_step_that_trained_it(fates):
    fates.receive(judgement(1))
    fates.apply_outcome(outcome("joined", (1, "used"), contributions=(GROUP,), rewards={0: 1.0}))
    (told,) = fates.report(ROLLOUT, "ann").judgements
    assert (told.state, told.effects[0].step) == ("used", None)
    fates.apply_entry(step(4, GROUP, version=6))
    report = fates.report(ROLLOUT, "ann")
    (effect,) = report.judgements[0].effects
    assert (effect.what, effect.step, effect.version, effect.dropped) == ("answer", 4, 6, None)
    assert (report.state, report.reward) == ("joined", 1.0)


def test_a_step_that_a_new_start_does_not_continue_from_never_happened(fates):
    fates.receive(judgement(1))
    fates.apply_outcome(outcome("joined", (1, "used"), contributions=(GROUP,)))
    fates.apply_entry(step(4, GROUP))
    fates.apply_entry(StartEntry(generation=2, continues=Position(generation=1, step=3)))
    assert fates.report(ROLLOUT, "ann").judgements[0].effects[0].step is None
    fates.apply_entry(step(5, GROUP, version=9, generation=2))
    assert fates.report(ROLLOUT, "ann").judgements[0].effects[0].version == 9


def test_a_group_that_was_dropped_says_why(fates):
    fates.receive(judgement(1))
    fates.apply_outcome(outcome("joined", (1, "used"), contributions=(GROUP,)))
    fates.apply_entry(step(4, dropped=[(GROUP, "stale")]))
    assert fates.report(ROLLOUT, "ann").judgements[0].effects[0].dropped == "stale"


def test_a_duplicate_of_a_trained_group_does_not_undo_it(fates):
    fates.receive(judgement(1))
    fates.apply_outcome(outcome("joined", (1, "used"), contributions=(GROUP,)))
    fates.apply_entry(step(4, GROUP))
    fates.apply_entry(step(5, dropped=[(GROUP, "duplicate")]))
    assert fates.report(ROLLOUT, "ann").judgements[0].effects[0].step == 4


def test_a_demonstration_trains_beside_its_answer(fates):
    fates.receive(judgement(1, kind="correction", value="5"))
    own = GroupId(FEEDBACK, 1)
    fates.apply_outcome(outcome("joined", (1, "used"), contributions=(GROUP, own)))
    fates.apply_entry(step(4, own))
    effects = fates.report(ROLLOUT, "ann").judgements[0].effects
    assert {(each.what, each.step) for each in effects} == {("answer", None), ("difference", 4)}


def test_a_late_change_is_the_difference_it_made(fates):
    fates.receive(judgement(1))
    fates.apply_outcome(outcome("joined", (1, "used"), contributions=(GROUP,)))
    fates.apply_entry(step(4, GROUP))
    fates.receive(judgement(2, value=-1.0))
    fates.receive(judgement(3, user="bob"))
    fates.apply_outcome(outcome("corrected", (2, "corrected"), (3, "corrected"), contributions=(GroupId(FEEDBACK, 2),)))
    fates.apply_entry(step(6, GroupId(FEEDBACK, 2), version=8))
    second = fates.report(ROLLOUT, "ann").judgements[1]
    assert [(each.what, each.version) for each in second.effects] == [("difference", 8)]
    (bobs,) = fates.report(ROLLOUT, "bob").judgements
    assert [(each.what, each.version) for each in bobs.effects] == [("difference", 8)]


@pytest.mark.parametrize(
    ("fate", "state"),
    [
        ("replaced", "replaced"), ("retracted", "withdrawn"), ("retraction", "withdrawn"), ("duplicate", "refused"),
        ("no_change", "refused"), ("too_few", "refused"), ("too_late", "refused"), ("unknown", "refused"),
        ("held_out", "refused"), ("bad_receipt", "refused"), ("expired_receipt", "refused"),
        ("rate_limited", "refused"), ("malformed", "refused"),
    ],
)  # fmt: skip
def test_every_other_fate_has_a_reason_in_words(fates, fate, state):
    fates.receive(judgement(1))
    fates.apply_outcome(outcome("refused", (1, fate), group=None))
    (told,) = fates.report(ROLLOUT, "ann").judgements
    assert (told.state, told.fate, told.effects) == (state, fate, ())
    assert told.reason


def test_a_user_sees_no_others_judgements(fates):
    fates.receive(judgement(1))
    fates.receive(judgement(2, user="bob"))
    assert states(fates) == [("f-1", "received")]
    assert states(fates, "carol") == []
    assert "bob" not in fates.report(ROLLOUT, "ann").model_dump_json()


def test_judgements_that_another_gateway_took_are_known_by_their_votes(fates):
    vote = Vote(sample=0, user="ann", channel="rating", value=1.0, at=NOW, id="f-9", place=(0, 9))
    other = Vote(sample=0, user="bob", channel="rating", value=1.0, at=NOW, id="f-8", place=(0, 8))
    given = outcome("joined", (9, "used"), (8, "used"), contributions=(GROUP,), votes=(vote, other))
    fates.apply_outcome(given)
    fates.apply_entry(step(4, GROUP))
    (told,) = fates.report(ROLLOUT, "ann").judgements
    assert (told.feedback_id, told.effects[0].step) == ("f-9", 4)


def test_the_newest_version_is_that_of_the_newest_generation(fates):
    def announced(version, generation):
        return WeightVersion(
            version=version, step=1, generation=generation, manifest_sha256="0" * 64, dtype="float32", base_model="m"
        )  # fmt: skip

    assert fates.newest_version is None
    for version, generation in ((1, 1), (3, 2), (4, 1)):
        fates.apply_weights(announced(version, generation))
    assert fates.newest_version == 3


def test_memory_is_bounded(fates, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 50)
    for number in range(500):
        rollout = RolloutId("demo", EXCHANGES, number, 0)
        fates.receive(judgement(number, rollout=rollout))
        fates.apply_outcome(outcome("joined", (number, "used"), contributions=(rollout.group,), group=rollout.group))
        fates.apply_entry(step(number + 1, rollout.group))
    for _ in range(500):
        fates.receive(judgement(499, rollout=RolloutId("demo", EXCHANGES, 499, 0)))
    assert [len(fates._received), len(fates._fates), len(fates._answers), len(fates._trained)] == [50] * 4
    assert len(fates.report(RolloutId("demo", EXCHANGES, 499, 0), "ann").judgements) == 100
