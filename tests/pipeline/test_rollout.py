"""The rollout pipeline as a process, with a real broker, Prism and a simulated engine."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from urllib.request import urlopen

import psutil
import pytest
from kafka import KafkaProducer

from pipelines.local.prism import find_prism, prism_command
from pipelines.local.tiny_model import build_tiny_model
from schemas.config import ModelConfig, RewardsConfig, RolloutConfig
from tests.pipeline.rollout_process import RolloutProcess, Topics, wait_for
from tests.support.simulated_engine import SimulatedEngine

REWARD = {"name": "last_number", "args": {"answer": "5"}}
BAD_PROMPTS = {
    b"not json": "not_json",
    json.dumps({"text": "1"}).encode(): "bad_record",
    json.dumps({"text": "1", "reward": {"name": "last_numbr"}}).encode(): "unknown_reward",
    json.dumps({"text": "1", "reward": {"name": "last_number"}}).encode(): "bad_reward_arguments",
    json.dumps({"text": "x" * (10 << 20), "reward": REWARD}).encode(): "too_large",
    json.dumps({"token_ids": [5, 99_999], "reward": REWARD}).encode(): "bad_token",
    json.dumps({"text": "1", "reward": REWARD, "group_size": 10**9}).encode(): "bad_record",
    json.dumps({"token_ids": [9], "reward": REWARD}).encode(): "engine_refused",
    json.dumps({"token_ids": [10], "reward": REWARD}).encode(): "engine_failed",
}
SLOW, REFUSED, BROKEN = 8, 9, 10
"""First tokens of prompts that the engine treats in a way of its own."""


def prompt(first=7, reward=REWARD, **more):
    return json.dumps({"token_ids": [first, 6], "reward": reward, **more}).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelConfig(path=str(build_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def engine():
    with SimulatedEngine(always={REFUSED: "refuse", BROKEN: "error"}) as engine:
        yield engine


@pytest.fixture
def configure(run_config, model, engine):
    def configured(*, rewards=None, **rollout):
        values = {"workers": (engine.url,), "group_size": 2, "max_in_flight": 16, **rollout}
        changes = {"model": model, "rollout": RolloutConfig(**values), "rewards": rewards or RewardsConfig()}
        return run_config.model_copy(update=changes)

    return configured


@contextlib.contextmanager
def prism_arguments(kind):
    """Beam options for Prism as the pipeline starts it, and for a job service that runs already."""
    if kind == "prism":
        yield []
        return
    port = free_port()
    prism = subprocess.Popen(prism_command(find_prism(), port))
    try:
        yield ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{port}", "--environment_type=LOOPBACK"]
    finally:
        prism.kill()
        prism.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("kind", ["prism", "loopback"])
def test_every_prompt_comes_out_once_bad_and_slow_ones_too(kind, configure, engine, tmp_path):
    port = free_port()
    rewards = RewardsConfig(timeout_s=0.5, modules=("tests.pipeline.hanging_reward",))
    config = configure(rewards=rewards, metrics_port=port, attempts=2)
    topics = Topics(config)
    engine.mean_s, engine.slow_s = 0.02, {SLOW: 3.0}
    slow = topics.send_prompts([prompt(SLOW)], partition=0)
    good = topics.send_prompts([prompt() for _ in range(60)])
    bad = dict(zip(topics.send_prompts(list(BAD_PROMPTS)), BAD_PROMPTS.values(), strict=True))
    hanging = topics.send_prompts([prompt(reward={"name": "hangs_on_sample", "args": {"index": 1}})])
    pending = topics.send_prompts([prompt(reward={"name": "feedback"})])
    everything = {*slow, *good, *bad, *hanging, *pending}
    topics.admit(1000, 1000)
    with prism_arguments(kind) as beam_args, RolloutProcess(config, tmp_path, beam_args) as process:
        wait_for(lambda: set(topics.outcomes()) == everything, process=process)
        figures = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        children = psutil.Process(process.process.pid).children(recursive=True)
        assert not [each.path for each in psutil.Process(process.process.pid).memory_maps() if "libtorch" in each.path]
        assert process.drain() == 0, process.log.read_text()[-3000:]
    assert set(topics.outcomes().values()) == {1}
    assert {tuple(letter.group): letter.reason for letter in topics.letters()} == bad
    assert {letter.stage for letter in topics.letters()} == {"generate"}
    groups = {tuple(samples[0].group): samples for samples in topics.groups()}
    assert [sample.reward for sample in groups[hanging[0]]] == [1.0, None]
    assert groups[hanging[0]][1].reward_error.startswith("reward_timeout")
    assert {sample.reward for group in good for sample in groups[group]} <= {0.0, 1.0}
    (rated,) = topics.groups(config.topics.pending)
    assert (tuple(rated[0].group), rated[0].reward, rated[0].reward_error) == (pending[0], None, None)
    order = [tuple(samples[0].group) for samples in topics.groups() if samples[0].prompt_partition == 0]
    assert slow[0] in order
    waited = groups[slow[0]][0].generated_at
    overtaken = [group for group in good if groups[group][0].generated_at < waited]
    assert len(overtaken) > 50, "a slow prompt does not hold up the others"
    assert figure(figures, "asyncflow_rollout_prompts_taken_total") == len(everything)
    assert figure(figures, 'asyncflow_dead_letters_total{reason="too_large",stage="generate"}') == 1
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def figure(text, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def test_nothing_beyond_the_frontier_is_answered_and_versions_are_asked_for(configure, engine, tmp_path):
    config = configure(max_in_flight=8)
    topics = Topics(config)
    topics.send_prompts([prompt() for _ in range(100)])
    with RolloutProcess(config, tmp_path) as process:
        topics.admit(10, 5, version=1)
        wait_for(lambda: len(topics.outcomes()) == 15, process=process)
        time.sleep(1.0)
        assert len(engine.requests) == 15
        assert set(topics.outcomes()) == {(0, o) for o in range(10)} | {(1, o) for o in range(5)}
        engine.version = 2
        topics.admit(50, 50, version=2)
        wait_for(lambda: len(topics.outcomes()) == 100, process=process)
    assert Counter(asked.min_version for asked in engine.requests) == {1: 15, 2: 85}
    assert engine.most_at_once <= 8
    versions = {tuple(samples[0].group): samples[0].weight_version_min for samples in topics.groups()}
    assert {group for group, version in versions.items() if version == 1} == {
        group for group in versions if group[1] < (10, 5)[group[0]]
    }


def test_kill_9_in_the_middle_loses_and_doubles_nothing(configure, engine, tmp_path):
    config = configure(max_bundle_groups=8)
    topics = Topics(config)
    engine.mean_s, engine.slow_s = 0.1, {SLOW: 3600.0}
    producer = KafkaProducer(**config.kafka.producer_options(f"{config.name}.producer"))
    producer.init_transactions()
    for part in range(10):  # transactions leave offsets without a prompt
        producer.begin_transaction()
        for index in range(40):
            first = SLOW if part == 0 and index < 2 else 7
            producer.send(config.topics.prompts, prompt(first), partition=index % 2)
        producer.abort_transaction() if part == 3 else producer.commit_transaction()
    topics.admit(1000, 1000)
    for kill_at in (60, 200):
        with RolloutProcess(config, tmp_path) as process:
            wait_for(process.hears_signals, process=process)
            wait_for(lambda at=kill_at: len(topics.outcomes()) >= at, process=process)
            process.kill()
    engine.slow_s = {}
    with RolloutProcess(config, tmp_path) as process:
        wait_for(process.hears_signals, process=process)
        wait_for(lambda: len(topics.outcomes()) >= 360, process=process)
        assert process.drain() == 0
    assert set(topics.outcomes().values()) == {1}
    assert len(topics.outcomes()) == 360
    slow = [asked for asked in engine.requests if asked.body["token_ids"][0] == SLOW]
    assert len(slow) == 2 * 3, "what was in flight was asked for again"


def test_sigterm_finishes_what_is_in_flight_and_takes_no_more(configure, engine, tmp_path):
    config = configure(max_in_flight=16, shares=2)
    topics = Topics(config)
    engine.mean_s, engine.slow_s = 0.0, {SLOW: 2.0}
    topics.send_prompts([prompt(SLOW) for _ in range(100)])
    topics.admit(1000, 1000)
    with RolloutProcess(config, tmp_path) as process:
        wait_for(lambda: len(engine.requests) == 32, process=process)
        assert process.drain() == 0, process.log.read_text()[-3000:]
    assert len(topics.outcomes()) == len(engine.requests) == 32, "16 in flight of each of the two shares"


def test_a_second_signal_does_not_wait_and_leaves_no_process(configure, engine, tmp_path):
    config = configure()
    topics = Topics(config)
    engine.slow_s = {SLOW: 60.0}
    topics.send_prompts([prompt(SLOW)])
    topics.admit(10, 10)
    with RolloutProcess(config, tmp_path) as process:
        wait_for(lambda: engine.requests, process=process)
        children = psutil.Process(process.process.pid).children(recursive=True)
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.process.poll() is None
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(60) == 128 + signal.SIGINT
    assert any("prism" in child.name() for child in children)
    psutil.wait_procs(children, timeout=60)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_newer_pipeline_fences_the_older_which_ends_with_an_error(configure, engine, tmp_path):
    config = configure()
    topics = Topics(config)
    topics.send_prompts([prompt() for _ in range(20)])
    topics.admit(5, 5)
    (tmp_path / "older").mkdir()
    (tmp_path / "newer").mkdir()
    with RolloutProcess(config, tmp_path / "older") as older:
        wait_for(lambda: len(topics.outcomes()) == 10, process=older)
        with RolloutProcess(config, tmp_path / "newer") as newer:
            wait_for(lambda: "share_opened" in newer.log.read_text(), process=newer)
            topics.admit(10, 10)
            assert older.process.wait(60) == 1
            wait_for(lambda: len(topics.outcomes()) == 20, process=newer)
            assert newer.drain() == 0
    assert "FencedError" in older.log.read_text()
    assert set(topics.outcomes().values()) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(path="/no/such/model")}, r"model\.path = '/no/such/model'"),
        ({"rewards": RewardsConfig(modules=("no_such_module",))}, "no_such_module"),
    ],
)
def test_what_the_user_can_mend_is_found_before_anything_starts(configure, changes, message):
    from pipelines.rollout import run
    from schemas.errors import UserError

    with pytest.raises(UserError, match=message):
        run(configure().model_copy(update=changes), [])
