"""Planning, deduplication, staleness, redo and accounts, as pure logic."""

import json
from dataclasses import replace

import pytest

from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from schemas.ledger import DroppedGroup, StepEntry
from schemas.trajectories import Span
from tests.support.samples import group
from trainers.accounts import Accounts, Versions
from trainers.masks import trained_mask
from trainers.planner import Arrival, Planner


def arrival(offset, version=1, *, at=None, rewards=(1.0, 0.0), attempt="a1", partition=0):
    samples = group(partition, offset, len(rewards), attempt_id=attempt, weight_version_spans=(Span(version, 0),),
                    weight_version_min=version, weight_version_max=version)  # fmt: skip
    samples = [replace(sample, reward=reward) for sample, reward in zip(samples, rewards, strict=True)]
    return Arrival(GroupId(partition, offset), at or (0, offset), tuple(samples))


@pytest.fixture
def planner():
    return Planner(2, 1, Accounts(), Versions({1: 0, 2: 1, 3: 2, 4: 3}))


def names(plan):
    return [arrival.group.offset for arrival in plan.arrivals]


def reasons(plan):
    return [(drop.group.offset, drop.reason) for drop in plan.dropped]


def test_oldest_weights_come_first_then_order_of_arrival(planner):
    for offset, version in ((5, 2), (9, 1), (3, 2), (4, 1)):
        assert planner.offer(arrival(offset, version)) is None
    assert names(planner.take(1)) == [9, 4]
    assert names(planner.take(1)) == [5, 3]


def test_step_waits_until_it_is_full(planner):
    planner.offer(arrival(0))
    assert not planner.is_ready()
    planner.offer(arrival(1))
    assert planner.is_ready()


def test_first_accepted_attempt_wins_while_waiting_and_after_training(planner):
    planner.offer(arrival(0, attempt="first"))
    assert planner.offer(arrival(0, attempt="second", at=(1, 7))) == "duplicate"
    planner.offer(arrival(1))
    plan = planner.take(0)
    assert plan.arrivals[0].samples[0].attempt_id == "first"
    assert planner.offer(arrival(0, attempt="third", at=(1, 9))) == "duplicate"
    assert planner.accounts.count == 2
    assert reasons(plan) == [(0, "duplicate")]


def test_record_that_the_ledger_knows_is_passed_over_without_a_word(planner):
    planner.offer(arrival(0))
    planner.offer(arrival(1))
    planner.take(0)
    assert planner.offer(arrival(0)) is None
    assert planner.drops == []
    assert not planner.waiting


def test_version_that_was_never_announced_is_dropped(planner):
    assert planner.offer(arrival(0, version=9)) == "unknown_version"
    assert planner.accounts.is_finished(GroupId(0, 0))


def test_one_unknown_span_is_enough(planner):
    sample = replace(arrival(0).samples[0], weight_version_spans=(Span(1, 0), Span(9, 1)), weight_version_max=9)
    assert planner.offer(Arrival(GroupId(0, 0), (0, 0), (sample,))) == "unknown_version"


def test_what_became_too_old_is_dropped_and_named(planner):
    planner.offer(arrival(0, version=1))
    planner.offer(arrival(1, version=2))
    assert names(planner.take(2)) == [1]
    assert reasons(planner.take(2)) == []


def test_stale_drop_stands_in_the_plan_that_made_it(planner):
    planner.offer(arrival(0, version=1))
    assert reasons(planner.take(2)) == [(0, "stale")]


def test_nulls_take_no_part_and_a_group_of_one_known_reward_is_dropped(planner):
    assert planner.offer(arrival(0, rewards=(1.0, None, None))) == "zero_variance"
    assert planner.offer(arrival(1, rewards=(1.0, None, 0.0))) is None


def test_rewards_of_groups_without_variance_count_for_the_mean(planner):
    planner.offer(arrival(0, rewards=(1.0, 1.0)))
    planner.offer(arrival(1))
    planner.offer(arrival(2))
    assert planner.take(0).rewards == (1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    assert planner.take(0).rewards == ()


def test_step_never_wedges_on_groups_without_variance(planner):
    planner.offer(arrival(100))
    for offset in range(8):
        planner.offer(arrival(offset, rewards=(0.0, 0.0)))
    assert not planner.is_ready()
    planner.offer(arrival(8, rewards=(0.0, 0.0)))
    assert planner.is_ready()
    assert names(planner.take(0)) == [100]
    assert not planner.is_ready()


def test_redo_takes_the_recorded_plan_whatever_its_age(planner):
    dropped = (DroppedGroup(group=GroupId(0, 7), at=(0, 7), reason="stale"),)
    old = arrival(0, version=1)
    entry = StepEntry(generation=1, step=4, version=5, trained=(old.trained(),), dropped=dropped)
    planner.drops = list(dropped)
    plan = planner.again(entry, [old])
    assert names(plan) == [0]
    assert plan.dropped == dropped
    assert planner.drops == []
    assert planner.accounts.count == 2
    assert planner.offer(old) is None
    assert not planner.waiting
    assert planner.offer(arrival(0, at=(1, 50), attempt="b")) == "duplicate"


def test_successor_reads_from_the_first_waiting_group_on(planner):
    planner.offer(arrival(0, at=(0, 4)))
    planner.offer(arrival(1, at=(1, 9)))
    planner.offer(arrival(2, at=(0, 6)))
    assert planner.positions({0: 20, 1: 8, 2: 3}) == {0: 4, 1: 8, 2: 3}


def test_staleness_counts_updates_along_the_line():
    versions = Versions({1: 0, 2: 1, 3: 2, 4: 10, 5: 11})
    assert versions.staleness(2, 3) == 2
    assert versions.staleness(5, 10) == 0  # a version of a line that was given up
    assert versions.staleness(4, 10) == 0  # the announcement after a restart ages nothing


def test_step_that_changed_nothing_ages_nothing():
    versions = Versions({1: 0, 2: 1, 3: 3}, skipped=[2])
    assert versions.staleness(2, 2) == 0
    assert versions.staleness(2, 3) == 1
    assert versions.staleness(3, 4) == 1


def test_accounts_survive_the_checkpoint_exactly():
    accounts = Accounts()
    for offset in (0, 1, 5, 70_000):
        assert accounts.finish(GroupId(0, offset))
    assert not accounts.finish(GroupId(0, 5))
    accounts.skip(0, 2, 4)
    accounts.settle(GroupId(0, 5), (1, 17))
    accounts.settle(GroupId(0, 1), (1, 3))
    accounts.forget_below({1: 10})
    restored = Accounts.restore(accounts.dump())
    assert restored == accounts
    assert restored.count == 4
    assert restored.finished[0].canonical() == (4, (5, 70_000))
    assert restored.settled == {(GroupId(0, 5), (1, 17))}


def test_gaps_are_not_counted_but_keep_the_set_short():
    accounts = Accounts()
    for offset in range(0, 100, 2):
        accounts.finish(GroupId(0, offset))
        accounts.skip(0, offset + 1, offset + 2)
    assert accounts.count == 50
    assert accounts.finished[0].canonical() == (100, ())


def over(offset, *versions, mask=(True, True, True), rewards=(1.0, 0.0)):
    """A group whose token i was produced by the i-th of three versions."""
    spans = tuple(Span(version, i) for i, version in enumerate(versions) if i == 0 or versions[i - 1] != version)
    changes = {"weight_version_spans": spans, "loss_mask": mask,
               "weight_version_min": min(versions), "weight_version_max": max(versions)}  # fmt: skip
    samples = [replace(sample, reward=reward, **changes) for sample, reward in
               zip(group(0, offset, len(rewards)), rewards, strict=True)]  # fmt: skip
    return Arrival(GroupId(0, offset), (0, offset), tuple(samples))


@pytest.fixture
def by_token():
    """One update may lie between a token and its training, and samples as a whole may be of any age."""
    return Planner(2, 1, Accounts(), Versions({1: 0, 2: 1, 3: 2, 4: 3}), max_token_staleness=1)


def test_long_answer_is_stale_as_a_whole_unless_tokens_are_judged_one_by_one(planner, by_token):
    for each in (planner, by_token):
        each.offer(over(0, 1, 2, 4))
    assert reasons(planner.take(3)) == [(0, "stale")]
    plan = by_token.take(3)
    assert (names(plan), plan.too_old, reasons(plan)) == ([0], (1, 2), [])


def test_group_is_stale_once_none_of_its_tokens_is_young(by_token):
    by_token.offer(over(0, 1, 2, 2))
    by_token.offer(over(1, 2, 2, 3))
    assert reasons(by_token.take(3)) == [(0, "stale")]
    by_token.offer(over(2, 1, 1, 2))
    by_token.drop_stale(2)
    assert list(by_token.waiting) == [GroupId(0, 2)]


def test_young_tokens_that_are_not_trained_keep_no_group(by_token):
    by_token.offer(over(0, 1, 4, 1, mask=(True, False, True)))
    by_token.offer(over(1, 4, 4, 4, rewards=(None, 1.0, 0.0)))
    first = over(2, 1, 1, 1, rewards=(1.0, 0.0)).samples
    lonely = replace(over(2, 4, 4, 4).samples[0], reward=None, sample_index=2)
    by_token.offer(Arrival(GroupId(0, 2), (0, 2), (*first, lonely)))
    plan = by_token.take(3)
    assert names(plan) == [1]
    assert reasons(plan) == [(0, "stale"), (2, "stale")]


def test_too_old_versions_are_those_of_the_step_and_no_others(by_token):
    by_token.offer(over(0, 2, 3, 4))
    by_token.offer(over(1, 3, 4, 4))
    by_token.offer(over(2, 1, 1, 4))
    assert by_token.take(3).too_old == (1, 2)
    assert by_token.take(3).too_old == ()


def test_any_token_makes_a_sample_stale_not_only_that_of_the_lowest_version():
    """Version 3 belongs to a line that was given up, so it counts as young; 4 is older in updates."""
    planner = Planner(1, 1, Accounts(), Versions({1: 0, 2: 1, 3: 9, 4: 1, 5: 2}))
    planner.offer(over(0, 3, 4, 4))
    assert reasons(planner.take(3)) == [(0, "stale")]


def test_redo_leaves_out_what_the_ledger_says_whatever_is_configured(planner):
    old = over(0, 1, 2, 4)
    entry = StepEntry(generation=1, step=4, version=5, trained=(old.trained(),), dropped=(), too_old=(1,))
    assert planner.again(entry, [old]).too_old == (1,)


def test_with_running_baselines_one_known_reward_teaches():
    planner = Planner(2, 1, Accounts(), Versions({1: 0}), needs_variance=False)
    assert planner.offer(arrival(0, rewards=(1.0,))) is None
    assert planner.offer(arrival(1, rewards=(0.5, 0.5, None))) is None
    assert planner.offer(arrival(2, rewards=(None, None))) == "zero_variance"
    assert names(planner.take(0)) == [0, 1]


def rated(offset, version=1, purpose="feedback", *, partition=EXCHANGES, rewards=(1.0,), by=()):
    """A group that people judged or wrote."""
    found = arrival(offset, version, partition=partition, rewards=rewards)
    samples = tuple(replace(sample, purpose=purpose) for sample in found.samples)
    return replace(found, samples=samples, raters=frozenset(by))


@pytest.mark.parametrize("purpose", ["feedback", "correction", "demonstration"])
def test_what_was_rated_teaches_by_one_known_reward(planner, purpose):
    assert planner.offer(rated(0, purpose=purpose)) is None
    assert planner.offer(rated(1, purpose=purpose, rewards=(None,))) == "zero_variance"
    assert planner.offer(rated(2, purpose=purpose, rewards=(0.5, 0.5))) is None
    assert planner.offer(arrival(2, rewards=(0.5, 0.5))) == "zero_variance"
    assert planner.offer(rated(0, purpose=purpose)) == "duplicate"


def patient(**settings):
    return Planner(2, 1, Accounts(), Versions({1: 0, 2: 1, 3: 2, 4: 3}), max_feedback_staleness=2, **settings)


@pytest.mark.parametrize("by_token", [None, 1])
def test_feedback_and_corrections_may_be_older_and_demonstrations_are_never_stale(by_token):
    planner = patient(max_token_staleness=by_token)
    planner.offer(arrival(0, 1))
    planner.offer(rated(1, 1))
    planner.offer(rated(2, 1, "correction", partition=FEEDBACK))
    planner.offer(rated(3, 1, "demonstration", partition=FEEDBACK))
    planner.drop_stale(2)
    assert [(drop.group.offset, drop.reason) for drop in planner.drops] == [(0, "stale")]
    planner.drop_stale(3)
    assert [drop.group.offset for drop in planner.drops] == [0, 1, 2]
    planner.drop_stale(1000)
    assert list(planner.waiting) == [GroupId(FEEDBACK, 3)]
    assert planner.accounts.count == 1, "two of the stale ones were no prompts"


def test_versions_that_are_too_old_for_answers_are_none_for_feedback(by_token):
    by_token.max_feedback_staleness = 9
    old = over(1, 1, 1, 2)
    by_token.offer(replace(old, samples=tuple(replace(each, purpose="feedback") for each in old.samples)))
    by_token.offer(over(2, 2, 3, 4))
    plan = by_token.take(3)
    assert (names(plan), plan.too_old) == ([1, 2], (2,))
    assert trained_mask(plan.arrivals[0].samples[0], plan.too_old) == (True, True, True)
    assert trained_mask(plan.arrivals[1].samples[0], plan.too_old) == [False, True, True]


def test_one_rater_is_part_of_no_more_than_a_share_of_a_step_and_the_rest_waits():
    planner = patient(max_rater_share=0.5)
    planner.groups_per_step = 4
    for offset in range(4):
        planner.offer(rated(offset, by=("ann",)))
    assert planner.is_held_up()
    assert not planner.is_ready()
    assert planner.over_share() == 2
    planner.offer(rated(4, by=("ann", "bob")))
    assert (planner.is_ready(), planner.over_share()) == (False, 3), "she is part of this one too"
    planner.offer(rated(5, by=("bob",)))
    planner.offer(arrival(6))
    assert planner.is_ready()
    assert not planner.is_held_up()
    assert names(planner.take(0)) == [0, 1, 5, 6]
    assert [group.offset for group in planner.waiting] == [2, 3, 4]


def test_raters_over_their_share_do_not_wedge_the_loop_for_ever():
    """What is over the share is taken later, or becomes stale like everything else."""
    planner = patient(max_rater_share=0.5)
    for offset in range(3):
        planner.offer(rated(offset, by=("ann",)))
    planner.offer(arrival(5, 2))
    assert names(planner.take(0)) == [0, 5]
    assert not planner.is_ready()
    planner.drop_stale(3)
    assert [(drop.group.offset, drop.reason) for drop in planner.drops] == [(1, "stale"), (2, "stale")]
    assert not planner.is_held_up()


@pytest.mark.parametrize(("share", "groups", "most"), [(0.01, 8, 1), (0.29, 100, 29), (0.5, 5, 2), (1.0, 3, 3)])
def test_a_share_is_rounded_down_and_is_one_group_at_least(share, groups, most):
    planner = patient(max_rater_share=share)
    planner.groups_per_step = groups
    for offset in range(groups):
        planner.offer(rated(offset, by=("ann",)))
    assert len(planner.take(0).arrivals) == most


def test_mean_rewards_are_those_of_answers(planner):
    planner.offer(rated(0, rewards=(0.5,)))
    planner.offer(rated(1, purpose="correction", partition=FEEDBACK, rewards=(-2.0,)))
    plan = planner.take(0)
    assert (names(plan), plan.rewards) == ([0, 1], (0.5,))
    entry = StepEntry(generation=1, step=1, version=2, trained=(), dropped=())
    assert planner.again(entry, plan.arrivals).rewards == (0.5,)


def test_parked_and_contributed_survive_the_checkpoint_whatever_their_offsets():
    accounts = Accounts()
    for prompt in (GroupId(0, 5), GroupId(0, 9), GroupId(1, 70_000)):
        accounts.park(prompt)
    accounts.finish(GroupId(0, 9))
    for other in (GroupId(EXCHANGES, 0), GroupId(EXCHANGES, 1), GroupId(FEEDBACK + 2, 2**63 - 1)):
        assert accounts.finish(other)
        assert not accounts.finish(other)
    restored = Accounts.restore(json.loads(json.dumps(accounts.dump())))
    assert restored == accounts
    assert restored.parked == {GroupId(0, 5), GroupId(1, 70_000)}
    assert (restored.count, restored.released) == (1, 3)
    assert restored.is_finished(GroupId(FEEDBACK + 2, 2**63 - 1))
    assert not restored.is_finished(GroupId(FEEDBACK + 2, 5))


def test_a_checkpoint_that_knew_of_prompts_only_is_restored():
    accounts = Accounts()
    accounts.finish(GroupId(0, 1))
    old = {name: value for name, value in accounts.dump().items() if name not in ("parked", "contributed")}
    assert Accounts.restore(old) == accounts


def test_a_step_that_is_done_again_ends_a_parked_prompt_and_counts_it_once(planner):
    planner.accounts.park(GroupId(0, 0))
    old = replace(rated(0, partition=0), group=GroupId(0, 0))
    exchange = rated(4)
    entry = StepEntry(generation=1, step=1, version=2, trained=(old.trained(), exchange.trained()), dropped=())
    planner.again(entry, [old, exchange])
    planner.accounts.park(GroupId(0, 0))
    assert (planner.accounts.parked, planner.accounts.count) == (set(), 1)
