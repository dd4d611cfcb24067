"""Rewards in killable processes: what fails is null with a reason, and nothing else suffers."""

import os
import time
from dataclasses import replace

import pytest

from schemas.config import RewardsConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import Group
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.processes import RewardProcesses
from transforms.rewards.scoring import SampleScore, failed, score_samples
from transforms.score import Scorer, apply_scores

MODULE = "tests.unit.transforms.rewards.bad_rewards"
LIMIT_S = 0.5
registry.load([MODULE])


@pytest.fixture(scope="module")
def scorer():
    processes = RewardProcesses(RewardsConfig(timeout_s=LIMIT_S, memory_bytes=2 << 30, modules=(MODULE,)))
    scorer = Scorer(processes)
    scorer.collect(scorer.submit(RewardSpec(name="fine"), [SAMPLE]), group("fine", "warm"))
    yield scorer
    processes.stop()


def group(reward, *texts):
    prompt = Prompt.model_validate({"text": "?", "reward": {"name": reward}})
    samples = tuple(
        replace(SAMPLE, sample_index=index, response_text=text, reward=None, reward_parts={})
        for index, text in enumerate(texts)
    )
    return Group(GroupId(0, 38), prompt, samples, b"value")


def scores(scorer, asked):
    return scorer.collect(scorer.submit(asked.prompt.reward, asked.samples), asked)


def test_a_score_has_value_and_parts(scorer):
    assert scores(scorer, group("fine", "a")) == [SampleScore(2.0, {"half": 1.0}, None)]


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        ("hangs", "reward_timeout: no reward within 0.5 s"),
        ("ignores_sigterm", "reward_timeout: no reward within 0.5 s"),
        ("dies", "reward_error: the reward's process died with exit code -9"),
        ("exits", "reward_error: SystemExit: 3"),
        ("eats_memory", "reward_error: MemoryError: "),
        ("raises", "reward_error: KeyError: 'no such thing'"),
        ("nan", "reward_error: not finite: value = nan"),
    ],
)
def test_only_the_offending_sample_goes_without_a_reward(scorer, reward, reason):
    got = scores(scorer, group(reward, "good", "bad", "good"))
    assert [score.value for score in got] == [1.0, None, 1.0]
    assert got[1].error == reason


def test_a_reward_that_ignores_sigterm_is_killed_at_once(scorer):
    started = time.monotonic()
    scores(scorer, group("ignores_sigterm", "bad"))
    assert time.monotonic() - started < 2 * LIMIT_S + 1.5, "a group and a sample of 0.5 s each, and little more"


def test_after_a_hang_a_thousand_rewards_run_at_full_speed(scorer):
    def a_thousand():
        started = time.monotonic()
        asked = group("fine", "a")
        futures = [scorer.submit(asked.prompt.reward, asked.samples) for _ in range(1000)]
        assert all(scorer.collect(future, asked)[0].value == 2.0 for future in futures)
        return time.monotonic() - started

    before = a_thousand()
    scores(scorer, group("hangs", "bad"))
    assert a_thousand() < max(3 * before, before + 1.0)


def test_what_a_killed_reward_forked_dies_with_it(scorer, tmp_path):
    asked = group("forks_and_hangs", "bad")
    samples = [replace(sample, worker=str(tmp_path / "pid")) for sample in asked.samples]
    scorer.collect(scorer.submit(asked.prompt.reward, samples), replace(asked, samples=tuple(samples)))
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.02)
    pytest.fail("the forked process still runs")


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_result_that_is_no_reward_is_an_error():
    (score,) = score_samples(RewardSpec(name="returns_text"), [SAMPLE])
    assert score == failed("reward_error", "returned str, expected a Reward")


def test_apply_scores_keeps_null_beside_its_reason():
    got = apply_scores(
        RunConfig(), group("fine", "a", "b"), [SampleScore(1.0, {"x": 1.0}, None), failed("reward_error", "x")]
    )
    assert [sample.reward for sample in got.samples] == [1.0, None]
    assert [sample.reward_error for sample in got.samples] == [None, "reward_error: x"]
    assert got.samples[0].reward_parts == {"x": 1.0}


@pytest.mark.parametrize(("second", "reason"), [("reward_timeout", "reward_timeout"), ("reward_error", "reward_error")])
def test_a_group_without_any_reward_is_a_dead_letter(second, reason):
    letter = apply_scores(RunConfig(), group("fine", "a", "b"), [failed("reward_error", "x"), failed(second, "y")])
    assert isinstance(letter, DeadLetter)
    assert (letter.stage, letter.reason, letter.topic, letter.group) == ("score", reason, "demo.prompts", (0, 38))
