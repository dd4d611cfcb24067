"""Prompts with environments through the whole pipeline: one right row a sample, which the learner takes."""

import json

import psutil
import pytest

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import EnvironmentsConfig, ModelConfig, RolloutConfig
from tests.pipeline.rollout_process import RolloutProcess, Topics, wait_for
from tests.support.simulated_engine import SimulatedEngine
from tests.unit.transforms.environments import bad_environments
from trainers.accounts import Accounts, Versions
from trainers.planner import Planner
from trainers.stream import read_trajectories

USER, ASSISTANT = 3, 4
LINES = {"says": ["1", "2"], "rewards": [0.5, 0.25, 0.125]}


def prompt(environment, reward=None, **arguments):
    question = {"messages": [{"role": "user", "content": "2+3"}], "reward": reward or {"name": "environment"}}
    return json.dumps({**question, "environment": {"name": environment, "args": arguments}}).encode()


def is_host(process):
    return any("transforms.environments.host" in argument for argument in process.cmdline())


@pytest.fixture
def config(run_config, tmp_path):
    limits = EnvironmentsConfig(modules=(bad_environments.MODULE,), step_timeout_s=1.0, max_turns=3)
    rollout = RolloutConfig(group_size=2, discover=False, environments=limits)
    model = ModelConfig(path=str(build_tiny_model(tmp_path / "model")))
    return run_config.model_copy(update={"model": model, "rollout": rollout})


def test_conversations_become_rows_that_the_learner_takes_and_bad_environments_dead_letters(config, tmp_path):
    with SimulatedEngine(version=3, mean_s=0.01) as engine:
        rollout = config.rollout.model_copy(update={"workers": (engine.url,)})
        config = config.model_copy(update={"rollout": rollout})
        topics = Topics(config)
        scripted = topics.send_prompts([prompt("scripted", **LINES)] * 2)
        scored = topics.send_prompts([prompt("scripted", {"name": "last_number", "args": {"answer": "5"}}, **LINES)])
        guesses = topics.send_prompts([prompt("guess_number", secret=5, low=0, high=9, step_cost=0.25)])
        blocks = topics.send_prompts([prompt("misbehaving", manner="blocks")])
        wrong = topics.send_prompts([prompt("guess_numbr")])
        topics.admit(1000, 1000, version=3)
        everything = {*scripted, *scored, *guesses, *blocks, *wrong}
        with RolloutProcess(config, tmp_path) as process:
            wait_for(lambda: set(topics.outcomes()) == everything, process=process)
            hosts = [child for child in psutil.Process(process.process.pid).children(recursive=True) if is_host(child)]
            assert process.drain() == 0, process.log.read_text()[-3000:]
    assert len(hosts) >= 2, "one for each environment that is still in order"
    assert not [child for child in hosts if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert set(topics.outcomes().values()) == {1}
    letters = {tuple(letter.group): (letter.stage, letter.reason) for letter in topics.letters()}
    assert letters[wrong[0]] == ("generate", "unknown_environment")
    assert letters[blocks[0]] == ("score", "environment_timeout")
    arrivals = [event for record in topics.read(config.topics.trajectories) for event in read_trajectories(record)]
    groups = {tuple(arrival.group): arrival.samples for arrival in arrivals}
    for sample in groups[scripted[0]]:
        heard = [token for token, own in zip(sample.response_token_ids, sample.loss_mask, strict=True) if not own]
        assert heard == [USER, 7, ASSISTANT, USER, 8, ASSISTANT]
        assert (sample.reward, sample.finish_reason, sample.weight_version_min) == (0.875, "stop", 3)
        assert list(sample.prompt_token_ids) == list(engine.requests[0].body["token_ids"])
    assert {sample.reward for sample in groups[scored[0]]} <= {0.0, 1.0}
    planner = Planner(1, 1, Accounts(), Versions({3: 0}))
    reasons = {tuple(arrival.group): planner.offer(arrival) for arrival in arrivals}
    assert set(reasons.values()) <= {None, "zero_variance"}
    assert reasons[scripted[0]] == "zero_variance", "all of its samples got the same reward"
