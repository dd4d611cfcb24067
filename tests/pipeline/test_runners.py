"""The same pipelines, unchanged, on several runners, with workers here and where only the wheel is installed."""

import json
import re
import signal
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from pipelines.local.ports import free_ports
from pipelines.local.tiny_model import build_tiny_model
from schemas.config import ModelConfig, RewardsConfig, RolloutConfig
from schemas.joining import FeedbackConfig
from tests.pipeline.rollout_process import JoinProcess, RolloutProcess, Topics, wait_for
from tests.support.feedback_traffic import Sender, account, draw, foresee
from tests.support.installed import PACKAGES, ROOT
from tests.support.simulated_engine import SimulatedEngine

PROMPTS, ROLLOUTS = 40, 40
BAD = json.dumps({"text": "1", "reward": {"name": "no_such_reward"}}).encode()
REWARD = """
from pydantic import BaseModel
from schemas.trajectories import Sample
from transforms.rewards.registry import Reward, reward

class Arguments(BaseModel):
    scale: float

@reward("tokens_times")
def tokens_times(sample: Sample, arguments: Arguments) -> Reward:
    return Reward(arguments.scale * sum(sample.prompt_token_ids))
"""
"""A file of the user, which no worker elsewhere has."""
HANGS = """
import os, time
from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

class Told(Arguments):
    file: str

@reward("hangs")
def hangs(sample: Sample, arguments: Told) -> Reward:
    with open(arguments.file, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
    return Reward(1.0)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelConfig(path=str(build_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def engine():
    with SimulatedEngine(fixed_tokens=4, vocabulary=(6, 7)) as engine:  # always the same tokens
        yield engine


@pytest.fixture
def config(run_config, model, engine):
    rollout = RolloutConfig(workers=(engine.url,), group_size=2, shares=2)
    changes = {"model": model, "rewards": RewardsConfig(modules=("mine.py",)), "rollout": rollout}
    return run_config.model_copy(update=changes)


@dataclass
class Pool:
    """A pool of workers that runs."""

    address: str
    process: psutil.Process
    metrics_port: int


@pytest.fixture
def pool(installed, tmp_path):
    """``asyncflow beam-worker`` of the wheel."""
    port, metrics_port = free_ports(2)
    log = tmp_path / "pool.log"
    with log.open("wb") as out:
        started = installed.start("asyncflow", "beam-worker", "--port", port, "--metrics-port", metrics_port, log=out)
    try:
        wait_for(lambda: b"beam_worker_pool_ready" in log.read_bytes())
        yield Pool(f"127.0.0.1:{port}", psutil.Process(started.pid), metrics_port)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0, log.read_text()[-3000:]
    finally:
        below = below_of(started)
        started.kill()
        started.wait()
        end(below)


@contextmanager
def beam_arguments(kind, request):
    """Beam's arguments, and what tells that the workers are where they should be."""
    if kind == "external":
        pool = request.getfixturevalue("pool")
        yield ["--environment_type=EXTERNAL", f"--environment_config={pool.address}"]
        wait_for(lambda: not pool.process.children(), 120)  # no worker outlives its pipeline
    else:
        yield {"fnapi": ["--runner=FnApiRunner"], "loopback": []}[kind]


def content(samples):
    """What of a group is the same wherever it was made."""
    return tuple(
        (*sample.group, sample.sample_index, *sample.prompt_token_ids, *sample.response_token_ids, sample.reward)
        for sample in samples
    )


@pytest.mark.parametrize("kind", ["fnapi", "loopback", "external"])
def test_every_runner_makes_equal_groups(kind, config, tmp_path, request):
    topics = Topics(config)
    (tmp_path / "mine.py").write_text(REWARD)
    reward = {"name": "tokens_times", "args": {"scale": 0.5}}
    prompts = [json.dumps({"token_ids": [7, 6 + each % 9], "reward": reward}).encode() for each in range(PROMPTS)]
    topics.send_prompts([*prompts, BAD])
    topics.admit(1000, 1000)
    with beam_arguments(kind, request) as arguments, RolloutProcess(config, tmp_path, arguments, tmp_path) as process:
        wait_for(lambda: len(topics.outcomes()) == PROMPTS + 1, process=process)
        if kind == "external":
            figures = urlopen(f"http://127.0.0.1:{request.getfixturevalue('pool').metrics_port}/metrics").read()
            assert b"asyncflow_rollout_prompts_taken_total 41.0" in figures
        assert process.drain(120) == 0, process.log.read_text()[-3000:]
    assert {content(samples) for samples in topics.groups()} == expected(config)
    assert len(topics.groups()) == PROMPTS
    assert [letter.reason for letter in topics.letters()] == ["unknown_reward"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_pool_whose_reward_hangs(number, config, pool, tmp_path):
    (tmp_path / "mine.py").write_text(HANGS)
    config = config.model_copy(update={"rewards": config.rewards.model_copy(update={"timeout_s": 600.0})})
    topics, told = Topics(config), tmp_path / "told"
    reward = {"name": "hangs", "args": {"file": str(told)}}
    topics.send_prompts([json.dumps({"token_ids": [7], "reward": reward}).encode()])
    topics.admit(1000, 1000)
    arguments = ["--environment_type=EXTERNAL", f"--environment_config={pool.address}"]
    below = []
    try:
        with RolloutProcess(config, tmp_path, arguments, tmp_path) as process:
            hangs = int(wait_for(lambda: told.exists() and told.read_text(), process=process))
            below = below_of(pool.process)
            assert hangs in {each.pid for each in below}
            pool.process.send_signal(number)
            pool.process.wait(60)
            wait_for(lambda: not any(map(runs, below)), 60)
    finally:
        end(below)


def below_of(process):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def end(processes):
    """Only after a failure is there anything to end."""
    for each in filter(runs, processes):
        with suppress(psutil.NoSuchProcess):
            each.kill()


def runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def expected(config):
    """By hand: prompts go to the two partitions in turn, and the engine says 6, 6, 6 and the end of the text."""
    return {
        tuple(
            (each % 2, each // 2, index, 7, 6 + each % 9, 6, 6, 6, 2, 0.5 * (13 + each % 9))
            for index in range(config.rollout.group_size)
        )
        for each in range(PROMPTS)
    }


def test_feedback_is_decided_in_a_pool_as_the_log_says(run_config, model, pool, tmp_path):
    times = FeedbackConfig(settle_s=1, wait_s=4, unknown_after_s=3, correction_s=4, user_rate_per_s=1000)
    config = run_config.model_copy(update={"model": model, "feedback": times})
    traffic = draw(ROLLOUTS, ROLLOUTS, run=config.name)
    sender = Sender(config)
    for items in (traffic.early, traffic.mixed):
        sender.send(items)
    judgements = len(traffic.judgements) - len(traffic.late)

    def finished():
        found = account(config)
        ended = found.kinds["joined"] + found.kinds["expired"]
        return found if (len(found.judged), ended) == (judgements, ROLLOUTS) else None

    arguments = ["--environment_type=EXTERNAL", f"--environment_config={pool.address}"]
    with JoinProcess(config, tmp_path, arguments) as process:
        found = wait_for(finished, process=process)
        assert process.drain(120) == 0, process.log.read_text()[-3000:]
    assert found.once()
    assert (found.told, found.kinds) == foresee(config)


def test_the_wheel_has_every_module_and_file_of_the_packages(installed):
    files = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in Path(ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert files == {name for name in names if not re.match(r"asyncflow_rl-[^/]*\.dist-info/", name)}


def test_the_command_of_the_wheel_finds_its_own_packages(installed, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        told = installed.start("python", "-c", "import pipelines, pipelines.cli.main as m; print(m.__file__)", log=log)
        assert told.wait(60) == 0
    assert str(installed.bin.parent) in (tmp_path / "log").read_text()
