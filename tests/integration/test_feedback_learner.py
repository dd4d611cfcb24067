"""The learner on a real broker while people rate, correct and write: tests/support/raters.py plays them."""

import json
import logging
import signal
from collections import Counter
from dataclasses import asdict

from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.identity import FEEDBACK, GroupId
from schemas.ledger import surviving_steps
from schemas.trajectories import PURPOSES, encode
from tests.support.raters import RatedRollouts
from tests.support.samples import group
from tests.support.trajectories import (
    learn,
    read_all,
    read_ledger,
    shared_ranks,
    steps_of,
    verdict_of,
    wait_until,
    weight_hash,
    write_prompts,
    write_records,
)
from trainers.accounts import Accounts
from trainers.replay import replay

logging.getLogger("kafka").setLevel(logging.ERROR)

SETTINGS = {"groups_per_step": 4, "max_staleness": 1, "max_feedback_staleness": 9, "max_rater_share": 0.5,
            "checkpoint_every": 4, "keep_checkpoints": 9}  # fmt: skip


def frontiers(config):
    return [AdmissionFrontier.decode(record.value) for record in read_all(config, config.topics.admission)]


def group_of(record):
    return GroupId(*map(int, record.key.decode().split("/")))


def known(tmp_path, step):
    """What the newest checkpoint of a step knows."""
    files = (tmp_path / "checkpoints").glob(f"g*-s{step:08d}-*/state.json")
    return json.loads(max(files).read_text())


def ended(config, state):
    """The prompts that had an end when a checkpoint was made, from the topics alone."""
    line = [entry for entry in surviving_steps(read_ledger(config)) if entry.step <= state["step"]]
    dropped = [part for entry in line for part in entry.dropped if part.reason != "duplicate"]
    groups = {part.group for entry in line for part in entry.trained} | {part.group for part in dropped}
    groups |= {GroupId(*drop["group"]) for drop in state["drops"] if drop["reason"] != "duplicate"}
    letters = [record for record in read_all(config, config.topics.dead_letters)
               if record.offset < state["letters_position"]]  # fmt: skip
    groups |= {letter.group for letter in (DeadLetter.decode(record.value) for record in letters)}
    return {each for each in groups if each.is_prompt}


def assert_accounts_are_those_of_the_log(config, state):
    """What is finished, what is parked of the pending records that had been read, and what that admits."""
    accounts, ends = Accounts.restore(state["accounts"]), ended(config, state)
    read = [record for record in read_all(config, config.topics.pending)
            if record.offset < state["pending_positions"][str(record.partition)]]  # fmt: skip
    assert accounts.count == len(ends)
    assert accounts.parked == {group_of(record) for record in read} - ends
    room = (1 + config.learner.max_staleness) * config.learner.groups_per_step
    assert state["admitted"] == sum(state["frontier"].values()) == accounts.count + len(accounts.parked) + room
    return accounts


def expired_below(config, frontier, state):
    """Admitted prompts that nobody judged in time, unknown to a checkpoint: each makes room for another one.

    A learner may be killed before it has heard of one, and the next one reads all letters before it admits any.
    """
    accounts = Accounts.restore(state["accounts"])
    letters = (DeadLetter.decode(record.value) for record in read_all(config, config.topics.dead_letters))
    expired = {letter.group for letter in letters if letter.stage == "join"}
    admitted = {each for each in expired if each.offset < frontier[each.partition]}
    return {each for each in admitted if not accounts.is_finished(each) and each not in accounts.parked}


def kill_with_steps_to_do_again(config, nursery, every):
    """Kills a learner that is some steps beyond its newest checkpoint; returns what that checkpoint ends with."""

    def between():
        nursery.kill(signal.SIGSTOP)  # however late this test comes, what it sees then stays as it is
        done = len(steps_of(config))
        if done > every and done % every:
            return done
        nursery.kill(signal.SIGCONT)
        return None

    done = wait_until(between)
    nursery.kill(signal.SIGKILL)
    assert nursery.wait() == -signal.SIGKILL
    return done - done % every


def test_each_contribution_trains_once_beside_answers_also_through_a_kill(make_config, model_dir, nursery, tmp_path):
    config = make_config(**SETTINGS, steps=12)
    write_prompts(config, 400)
    with RatedRollouts(config, model_dir) as people:
        nursery.start(config, tmp_path)
        kept = kill_with_steps_to_do_again(config, nursery, every=4)
        dead, before = steps_of(config)[kept:], frontiers(config)[-1]
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
    line = surviving_steps(read_ledger(config))
    assert [(entry.generation, len(entry.trained)) for entry in line] == [(1, 4)] * kept + [(2, 4)] * (12 - kept)
    for entry, first in zip(line[kept:], dead, strict=False):
        assert (entry.trained, entry.dropped) == (first.trained, first.dropped)
        assert weight_hash(config, entry.version) == weight_hash(config, first.version)
    trained = Counter(part.group for entry in line for part in entry.trained)
    assert set(trained.values()) == {1}
    assert {each for each in trained if not each.is_prompt} <= set(people.contributed)
    assert any(each in people.pending for each in trained), "a parked prompt was rated and trained"
    for entry in line:
        raters = Counter(rater for part in entry.trained for rater in people.by.get(part.group, ()))
        assert max(raters.values(), default=0) <= 2
    started = next(frontier for frontier in frontiers(config) if frontier.generation == 2)
    anew = sum(started.frontier.values()) - sum(before.frontier.values())
    expired = expired_below(config, before.frontier, known(tmp_path, kept))
    assert 0 <= anew <= len(expired), "a start admits nothing anew for what is parked"
    assert_accounts_are_those_of_the_log(config, known(tmp_path, 12))
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults
    assert set(verdict.trained_by_purpose) == set(PURPOSES)
    assert verdict.parked > 0


def test_parked_prompts_make_room_for_others_and_count_the_same_after_a_restart(make_config, model_dir, tmp_path):
    write_prompts(make_config(), 400)
    config = make_config(**SETTINGS, steps=6)
    with RatedRollouts(config, model_dir) as people:
        learn(config)
        first = assert_accounts_are_those_of_the_log(config, known(tmp_path, 6))
        learn(make_config(**SETTINGS, steps=10))
        second = assert_accounts_are_those_of_the_log(config, known(tmp_path, 10))
    assert first.parked & second.parked, "nobody ever judges some of them"
    assert ended(config, known(tmp_path, 10)) & set(people.pending), "others came to an end"
    assert steps_of(config)[-1].metrics["prompts_parked"] == len(second.parked)
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults


def test_a_step_of_all_purposes_is_trained_again_to_the_same_bits(make_config, model_dir, tmp_path):
    config = make_config(**SETTINGS | {"groups_per_step": 6, "checkpoint_every": 2}, steps=7)
    write_prompts(config, 400)
    with RatedRollouts(config, model_dir):
        learn(config)
    kinds = ("feedback_groups", "correction_groups", "demonstration_groups")
    line = steps_of(config)
    mixed = [entry for entry in line if all(entry.metrics[kind] for kind in kinds)]
    assert mixed
    assert known(tmp_path, 4)["baselines"], "they come from feedback, with an advantage that has none"
    for entry in (mixed[0], mixed[-1], line[-1]):
        assert replay(config, shared_ranks(), entry.step).equal
    assert all(entry.metrics["logprob_gap_mean"] < 1 for entry in line), "logprobs of 0 are none of an engine"


def test_a_checkpoint_from_before_there_was_feedback_is_gone_on_from(make_config, model_dir, tmp_path, monkeypatch):
    def as_before(state):
        told = asdict(state)
        del told["pending_positions"], told["accounts"]["parked"], told["accounts"]["contributed"]
        told["topic_ids"] = {name: known for name, known in told["topic_ids"].items() if "pending" not in name}
        return told

    write_prompts(make_config(), 400)
    config = make_config(**SETTINGS, steps=4)
    with RatedRollouts(config, model_dir):
        with monkeypatch.context() as patched:
            patched.setattr("trainers.checkpoint.asdict", as_before)
            learn(config)
        assert "pending_positions" not in known(tmp_path, 4)
        learn(make_config(**SETTINGS, steps=8))
    assert_accounts_are_those_of_the_log(config, known(tmp_path, 8))
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults


def test_what_a_group_may_not_be_is_a_dead_letter_and_never_trained(make_config, model_dir):
    config = make_config(**SETTINGS, steps=3)
    write_prompts(config, 200)
    rogue = [
        group(FEEDBACK, 10**15, 1, run=config.name),
        group(FEEDBACK, 10**15 + 1, 2, run=config.name, purpose="demonstration"),
        group(FEEDBACK, 10**15 + 2, 1, run=config.name, purpose="demonstration", reward=-1.0),
    ]
    write_records(config, map(encode, rogue))
    with RatedRollouts(config, model_dir):
        learn(config)
    letters = [DeadLetter.decode(record.value) for record in read_all(config, config.topics.dead_letters)]
    refused = [(letter.topic, letter.offset) for letter in letters if letter.reason == "bad_row"]
    assert sorted(refused) == [(config.topics.trajectories, offset) for offset in range(3)]
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults
