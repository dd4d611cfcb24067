"""Groups that a judge scores, in the pool of one share: an outage pauses, and what comes after it is complete."""

import json
import socket
import time

import pytest

from pipelines.rollout import check
from schemas.config import ModelConfig, RewardsConfig, RolloutConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import ConfigError
from tests.pipeline.rollout_process import RolloutProcess, wait_for
from tests.support.judges import ServiceServer, says, status
from transforms.assemble import assemble
from transforms.generation import pool as module
from transforms.rewards import registry
from transforms.score import scorer_of

registry.load()
MESSAGES = [{"role": "user", "content": "1+1"}]


def prompt(judge="strict"):
    reward = {"name": "judge", "args": {"judges": [judge], "rubric": "Is it right?"}}
    return json.dumps({"messages": MESSAGES, "reward": reward}).encode()


@pytest.fixture
def judge():
    with ServiceServer(says("Score: 7")) as judge:
        yield judge


@pytest.fixture
def config(run_config, model, engine, judge):
    rollout = RolloutConfig(workers=(engine.url,), group_size=2, max_in_flight=4)
    settings = {"url": judge.url, "model": "m", "timeout_s": 5, "patience_s": 60, "open_s": 0.3}
    rewards = RewardsConfig.model_validate({"judges": {"strict": settings}})
    return run_config.model_copy(update={"model": ModelConfig(path=model), "rollout": rollout, "rewards": rewards})


def take(pool, count):
    """So many outcomes with their rewards."""
    taken = []
    wait_for(lambda: taken.extend(pool.take(count - len(taken))) or len(taken) >= count)
    return [pool._scorer.finish(RunConfig(), finished.outcome) for finished in taken]


def test_an_outage_holds_groups_back_and_stops_prompts_and_loses_nothing(open_pool, config, topics, engine, judge):
    judge.behaviour = status(503)
    topics.send_prompts([prompt()] * 40)
    topics.admit(100, 100)
    pool = open_pool()
    wait_for(lambda: len(engine.requests) == 16, 60)
    time.sleep(1.0)
    assert pool.take(100) == [], "no bundle waits for the judge"
    pool.offer_again()
    assert pool.take(100) == [], "nor that of a new reader"
    assert len(engine.requests) == 16, "four times max_in_flight wait, and no more prompts are taken"
    judge.behaviour = says("Score: 7")
    outcomes = []
    while len(outcomes) < 40:
        some = take(pool, 1)
        pool.commits.commit(assemble(config, some))
        outcomes += some
    assert [sample.reward for group in outcomes for sample in group.samples] == [0.7] * 80
    assert topics.outcomes() == dict.fromkeys(topics.outcomes(), 1)
    assert len(topics.outcomes()) == 40


def test_a_pool_that_has_to_end_lets_go_of_what_nobody_judges_and_the_next_one_asks_again(
    open_pool, config, topics, judge, monkeypatch
):
    monkeypatch.setattr(module, "_LAST_CALL_S", 0.5)
    judge.behaviour = status(503)
    topics.send_prompts([prompt()] * 6)
    topics.admit(100, 100)
    pool = open_pool()
    wait_for(lambda: judge.requests, 60)
    pool.drain()
    assert not pool.is_drained()
    wait_for(pool.is_drained, 60)
    pool.stop()
    assert topics.outcomes() == {}
    judge.behaviour = says("Score: 7")
    again = open_pool()
    again.commits.commit(assemble(config, take(again, 6)))
    assert list(topics.outcomes().values()) == [1] * 6


def test_a_prompt_that_names_a_judge_that_is_not_configured_is_never_generated(open_pool, topics, engine):
    topics.send_prompts([prompt("kind")])
    topics.admit(100, 100)
    (letter,) = take(open_pool(), 1)
    assert isinstance(letter, DeadLetter)
    assert (letter.stage, letter.reason) == ("generate", "bad_reward_arguments")
    assert "no 'kind'; there are strict" in letter.detail
    assert engine.requests == []


def test_a_judge_that_stays_away_makes_dead_letters_that_say_so(open_pool, topics):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
    away = {"url": url, "model": "m", "timeout_s": 0.5, "patience_s": 0.5}
    rewards = RewardsConfig.model_validate({"judges": {"strict": away}})
    pool = open_pool()
    pool._scorer = scorer_of(rewards)
    topics.send_prompts([prompt()] * 2)
    topics.admit(100, 100)
    letters = take(pool, 2)
    assert [letter.reason for letter in letters] == ["judge_unavailable"] * 2


def test_a_key_that_is_missing_is_told_before_anything_starts(config, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = {**config.rewards.judges["strict"].model_dump(), "key_env": "JUDGE_KEY"}
    rewards = RewardsConfig.model_validate({"judges": {"strict": judge}})
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        check(config.model_copy(update={"rewards": rewards}))


def test_the_pipeline_on_prism_asks_once_a_sample_and_ends_during_an_outage(config, topics, judge, tmp_path):
    exact = {"name": "exact_match", "args": {"answer": "a"}}
    others = topics.send_prompts([json.dumps({"messages": MESSAGES, "reward": exact}).encode()] * 20)
    judged = topics.send_prompts([prompt()] * 20)
    topics.admit(1000, 1000)
    with RolloutProcess(config, tmp_path) as process:
        wait_for(lambda: set(topics.outcomes()) == {*others, *judged}, process=process)
        assert len(judge.requests) == 40, "two samples a group, each once"
        judge.behaviour = status(503)
        waiting = topics.send_prompts([prompt()] * 3)
        more = topics.send_prompts([json.dumps({"messages": MESSAGES, "reward": exact}).encode()] * 20)
        wait_for(lambda: {*more} <= set(topics.outcomes()), process=process)
        assert process.drain(90) == 0, process.log.read_text()[-3000:]
    assert not {*waiting} & set(topics.outcomes()), "nobody judged them: the next pipeline asks again"
    assert set(topics.outcomes().values()) == {1}
    rewards = {tuple(samples[0].group): [sample.reward for sample in samples] for samples in topics.groups()}
    assert all(rewards[group] == [pytest.approx(0.7)] * 2 for group in judged)
