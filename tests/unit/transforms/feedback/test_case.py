"""One group from its first item to its end, at literal moments: held 10 s, expired after 1,000, closed 500 later."""

import itertools
from dataclasses import replace

import pytest

from schemas.identity import FEEDBACK, GroupId
from schemas.joining import FeedbackConfig
from schemas.topics import Topics
from schemas.trace_context import TraceContext, decode_groups
from tests.support.feedback import GROUP, awaited, judged
from transforms.feedback.book import encode
from transforms.feedback.case import Case, Rules, settle, take, wakes_at

CONFIG = FeedbackConfig(settle_s=10, wait_s=1000, unknown_after_s=60, correction_s=500)


def rules(**changes):
    return Rules(Topics("demo"), CONFIG.model_copy(update=changes), demonstrate)


def demonstrate(text, prompt_tokens):
    return None if text == "too long" else [ord(letter) for letter in text]


def play(items, *, given=None, until_s=10_000.0):
    """Gives the items in their order, then lets time run: all that is settled, with its moment, and what remains."""
    given, case, told = given or rules(), Case(GROUP), []
    for item in items:
        case = take(case, item)
    while (moment_s := wakes_at(case, given.feedback)) <= until_s:
        settled, case = settle(case, moment_s, given)
        told += [(moment_s, each) for each in settled]
    return told, case


def fates(told):
    return {fate.id: fate.fate for _, each in told if each.outcome for fate in each.outcome.feedback}


def kinds(told):
    return [(moment_s, each.outcome.kind if each.outcome else "closed") for moment_s, each in told]


@pytest.mark.parametrize("order", [0, 1])
def test_a_thumb_and_its_rollout_are_joined_in_either_order(order):
    items = [awaited(100.0), judged(105.0)] if order else [judged(105.0), awaited(100.0)]
    told, case = play(items)
    assert kinds(told) == [(115.0, "joined"), (615.0, "closed")]
    assert fates(told) == {"f-105": "used"}
    rows = told[0][1].contributions[0].samples
    assert [row.reward for row in rows] == [1.0, None]
    assert {row.purpose for row in rows} == {"feedback"}
    assert told[0][1].outcome.rewards == {0: 1.0}
    assert case.is_empty


def test_feedback_before_its_rollout_waits_for_it():
    told, _ = play([judged(50.0), awaited(100.0)])
    assert kinds(told)[0] == (110.0, "joined")


def test_feedback_whose_rollout_never_comes_is_unknown():
    told, case = play([judged(50.0)])
    assert (kinds(told), fates(told)) == ([(110.0, "refused")], {"f-50": "unknown"})
    assert case.is_empty


def test_feedback_whose_rollout_comes_too_late_is_unknown_also_when_both_lie_in_the_state():
    told, _ = play([judged(30.0), awaited(100.0)])
    assert fates(told) == {"f-30": "unknown"}
    assert kinds(told)[:2] == [(90.0, "refused"), (1100.0, "expired")]


def test_a_rollout_that_nobody_judges_expires_with_a_dead_letter():
    told, case = play([awaited(100.0)])
    assert kinds(told) == [(1100.0, "expired"), (1600.0, "closed")]
    letter = told[0][1].letters[0]
    assert (letter.stage, letter.reason, letter.topic, letter.group) == ("join", "expired", "demo.prompts", GROUP)
    assert case.is_empty


def test_feedback_after_expiry_is_too_late():
    told, _ = play([awaited(100.0), judged(1200.0)])
    assert fates(told) == {"f-1200": "too_late"}
    assert not any(each.contributions for _, each in told)


def test_an_edit_replaces_and_the_newest_wins_whatever_the_order_of_arrival():
    edits = [judged(105.0, value=-1.0, given_s=1.0), judged(106.0, given_s=3.0), judged(107.0, value=-1.0, given_s=2.0)]
    for order in itertools.permutations(edits):
        told, _ = play([awaited(100.0), *order])
        assert fates(told) == {"f-105": "replaced", "f-106": "used", "f-107": "replaced"}
        assert told[0][1].outcome.rewards == {0: 1.0}


def test_what_is_sent_twice_counts_once():
    told, _ = play([awaited(100.0), judged(105.0, name="a"), judged(106.0, name="a", given_s=105.0)])
    by_place = {fate.at: fate.fate for fate in told[0][1].outcome.feedback}
    assert by_place == {(1, 105): "used", (1, 106): "duplicate"}


def test_a_retraction_in_time_leaves_nothing_to_train():
    told, _ = play([awaited(100.0), judged(105.0), judged(109.0, "retract", None)])
    assert kinds(told)[0] == (1100.0, "expired")
    assert fates(told) == {"f-105": "retracted", "f-109": "retraction"}


def test_a_retraction_that_comes_later_than_the_decision_takes_the_reward_back():
    told, _ = play([awaited(100.0), judged(105.0), judged(300.0, "retract", None)])
    assert kinds(told) == [(115.0, "joined"), (310.0, "corrected"), (810.0, "closed")]
    correction = told[1][1].contributions[0]
    assert correction.id == GroupId(FEEDBACK + 1, 300)
    assert [(row.reward, row.purpose, row.prompt_id) for row in correction.samples] == [
        (-1.0, "correction", "demo/0/38/0")
    ]
    assert fates(told) == {"f-105": "used", "f-300": "retraction"}


def test_later_feedback_goes_out_as_the_difference_it_makes():
    told, _ = play([awaited(100.0), judged(105.0), judged(300.0, "score", -0.5, user="bob")])
    correction = told[1][1].contributions[0]
    assert correction.samples[0].reward == pytest.approx((1.0 - 0.5) / 2 - 1.0)
    assert fates(told)["f-300"] == "corrected"
    assert told[1][1].outcome.rewards == {0: 0.25}


def test_later_feedback_that_changes_nothing_is_counted_and_not_trained():
    told, _ = play([awaited(100.0), judged(105.0), judged(300.0, user="bob")])
    assert fates(told)["f-300"] == "no_change"
    assert not told[1][1].contributions


def test_two_late_edits_make_one_correction():
    told, _ = play([awaited(100.0), judged(105.0), judged(300.0, value=-1.0), judged(305.0, "score", 0.5)])
    assert kinds(told)[1] == (310.0, "corrected")
    assert [each.id for _, each in told[1:2] for each in each.contributions] == [GroupId(FEEDBACK + 1, 305)]
    assert fates(told) == {"f-105": "used", "f-300": "replaced", "f-305": "corrected"}


def test_a_preference_rewards_one_answer_and_punishes_the_other():
    told, _ = play([awaited(100.0, size=3), judged(105.0, "preference", "demo/0/38/2")])
    assert [row.reward for row in told[0][1].contributions[0].samples] == [-1.0, None, 1.0]


def test_a_late_preference_corrects_both_answers_at_once():
    told, _ = play([awaited(100.0), judged(105.0), judged(300.0, "preference", "demo/0/38/1", user="bob")])
    correction = told[1][1].contributions[0]
    assert [row.reward for row in correction.samples] == [-1.0, 1.0]
    assert [row.sample_index for row in correction.samples] == [0, 1]
    assert len({row.attempt_id for row in correction.samples}) == 1


def test_fewer_raters_than_asked_for_are_too_few():
    told, _ = play([awaited(100.0), judged(105.0)], given=rules(min_raters=2))
    assert fates(told) == {"f-105": "too_few"}
    told, _ = play([awaited(100.0), judged(105.0), judged(150.0, value=-1.0, user="bob")], given=rules(min_raters=2))
    assert kinds(told)[0] == (160.0, "joined")
    assert told[0][1].outcome.rewards == {0: 0.0}


def test_judgements_of_an_answer_that_the_group_does_not_have_are_unknown():
    told, _ = play([awaited(100.0), judged(105.0), judged(106.0, sample=7, user="bob")])
    assert fates(told) == {"f-105": "used", "f-106": "unknown"}


def test_a_correction_is_a_demonstration_and_a_rating_by_likeness():
    told, _ = play([awaited(100.0, response_text="abc"), judged(105.0, "correction", "abc")])
    group, shown = told[0][1].contributions
    assert group.samples[0].reward == pytest.approx(1.0)
    assert shown.id == GroupId(FEEDBACK + 1, 105)
    row = shown.samples[0]
    assert (row.purpose, row.reward, row.response_text) == ("demonstration", 1.0, "abc")
    assert (row.response_token_ids, row.response_logprobs) == ((97, 98, 99), (0.0, 0.0, 0.0))
    assert (row.weight_version_min, row.weight_version_max, row.weight_version_spans) == (11, 11, ((11, 0),))


def test_a_correction_after_training_is_shown_and_moves_no_reward():
    told, _ = play([awaited(100.0, response_text="xyz"), judged(105.0), judged(300.0, "correction", "abc", user="bob")])
    assert [each.samples[0].purpose for each in told[1][1].contributions] == ["demonstration"]
    assert told[1][1].outcome.rewards == {0: 1.0}
    assert fates(told)["f-300"] == "corrected"


def test_with_similarity_a_late_correction_moves_the_reward():
    given = rules(corrections="similarity")
    told, _ = play(
        [awaited(100.0, response_text="xyz"), judged(105.0), judged(300.0, "correction", "abc", user="bob")],
        given=given,
    )
    assert [each.samples[0].purpose for each in told[1][1].contributions] == ["correction"]
    assert told[1][1].contributions[0].samples[0].reward == pytest.approx((1.0 - 1.0) / 2 - 1.0)


def test_nothing_counts_once_the_case_is_closed():
    told, _ = play([awaited(100.0), judged(105.0)])
    assert kinds(told)[-1] == (615.0, "closed")
    told, _ = play([judged(700.0)])
    assert fates(told) == {"f-700": "unknown"}


def test_a_decision_looks_at_nothing_that_came_after_its_moment():
    """As if a pipeline reads on after hours: everything lies in the state before the first timer."""
    told, _ = play([awaited(100.0), judged(105.0), judged(116.0, value=-1.0)])
    assert told[0][1].outcome.rewards == {0: 1.0}
    assert kinds(told)[1] == (126.0, "corrected")
    told, _ = play([awaited(100.0), judged(105.0), judged(116.0, "retract", None)])
    assert kinds(told)[0] == (115.0, "joined")


def test_a_restarted_pipeline_goes_on_from_the_decision():
    told, _ = play([awaited(100.0), judged(105.0)], until_s=200.0)
    decision = type(told[0][1].outcome).decode(told[0][1].outcome.encode())
    again, _ = play([awaited(100.0, decision=decision), judged(300.0, value=-1.0)])
    assert kinds(again) == [(310.0, "corrected"), (810.0, "closed")]
    assert again[0][1].contributions[0].samples[0].reward == -2.0
    assert {fate.at for fate in again[0][1].outcome.feedback} == {(1, 300)}


def test_what_is_delivered_again_changes_nothing():
    first, _ = play([awaited(100.0), judged(105.0)])
    again, _ = play([awaited(100.0), judged(105.0), awaited(100.0), judged(105.0)])
    assert [each.outcome for _, each in first] == [each.outcome for _, each in again]
    _, case = play([awaited(100.0), judged(105.0)], until_s=200.0)
    assert take(case, judged(105.0)) == case


def test_a_group_that_lies_in_pending_twice_is_joined_once():
    told, _ = play([awaited(100.0), awaited(101.0, place=(1, 9)), judged(105.0)])
    assert [kind for _, kind in kinds(told)] == ["joined", "closed"]
    assert told[0][1].outcome.pending == ((0, 5), (1, 9))
    assert {closed.source.place for closed in told[1][1].closed} == {(0, 5), (1, 9)}


def test_every_judgement_ends_once_in_whatever_order_all_come():
    items = [
        awaited(100.0, size=2),
        judged(60.0, user="early"),
        judged(104.0, value=-1.0, user="bob"),
        judged(106.0, "retract", None, user="bob"),
        judged(107.0, "preference", "demo/0/38/1", user="cy"),
        judged(200.0, "score", 0.25, user="dan"),
    ]
    expected = None
    for order in itertools.permutations(items):
        told, case = play(order)
        found = [each.outcome.model_dump(exclude={"feedback"}) for _, each in told if each.outcome]
        places = sorted(fate.at for _, each in told if each.outcome for fate in each.outcome.feedback)
        assert places == sorted(item.source.place for item in items if item.source.place[0] == 1)
        assert case.is_empty
        expected = expected or (found, fates(told))
        assert (found, fates(told)) == expected


def test_a_flood_of_judgements_is_decided_without_being_held_back():
    flood = [judged(105.0, user=f"u{number}", offset=number) for number in range(1000)]
    case = take(Case(GROUP), awaited(100.0))
    for item in flood[:-1]:
        case = take(case, item)
    assert wakes_at(case, CONFIG) == 115.0
    case = take(case, flood[-1])
    assert wakes_at(case, CONFIG) == 105.0
    settled, case = settle(case, 105.0, rules())
    assert (len(settled[0].outcome.votes), case.waiting) == (1000, ())


def test_decisions_go_on_with_the_groups_trace_and_know_who_was_heard():
    own, ann, late = (TraceContext.begin(name, 1.0) for name in ("group", "ann", "late"))
    items = [
        awaited(100.0, trace=own),
        replace(judged(105.0), trace=ann),
        judged(106.0, user="bob"),
        replace(judged(200.0, "correction", "right"), trace=late),
    ]
    told, _ = play(items)
    joining = {each.outcome.kind: each.joining for _, each in told if each.outcome}
    assert joining == {"joined": (own, 100.0, (ann,)), "corrected": (own, 100.0, (late,))}
    for _, each in told:
        for contribution in each.contributions:
            _, headers = encode(contribution, each.joining)
            assert decode_groups(headers["traceparents"]) == {contribution.id: own}
    assert not any(each.joining for _, each in play([awaited(100.0), judged(105.0)])[0])


def test_an_expired_group_has_its_span_too():
    own = TraceContext.begin("group", 1.0)
    (first, *_), _ = play([awaited(100.0, trace=own)])
    assert (first[1].outcome.kind, first[1].joining) == ("expired", (own, 100.0, ()))


def test_a_text_that_cannot_be_an_answer_only_rates():
    told, _ = play([awaited(100.0), judged(105.0, "correction", "too long")])
    assert [each.samples[0].purpose for each in told[0][1].contributions] == ["feedback"]
    assert fates(told) == {"f-105": "used"}
