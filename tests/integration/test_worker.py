"""The real server, a real broker and a tiny model: versions change while answers are being generated."""

import threading
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from pipelines.local.ports import free_ports
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, ModelConfig, RunConfig, WeightsConfig, WorkerConfig
from schemas.weights import version_path
from tests.support.tiny_model import build_tiny_model
from tests.support.weights import announce, probe_of, publish_version, state_of, write_version
from tests.support.worker import WorkerProcess

PROMPT = (1, 9, 16, 10, 18)
START_S = 180


def make_config(broker, directory: Path) -> RunConfig:
    return RunConfig(
        name=f"test-{uuid4().hex[:12]}",
        kafka=KafkaConfig(bootstrap=broker),
        model=ModelConfig(path=str(directory / "model"), dtype="float32"),
        weights=WeightsConfig(root=str(directory / "weights")),
        worker=WorkerConfig(
            port=free_ports(1)[0],
            max_num_seqs=8,
            kv_cache_gib=0.25,
            max_wait_for_version_s=60,
            max_model_len_tokens=2048,
        ),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Four tiny models of one architecture that answer differently."""
    from transformers import LlamaForCausalLM

    made = [build_tiny_model(tmp_path_factory.mktemp(f"model-{seed}"), seed=seed) for seed in range(4)]
    return made[0], [LlamaForCausalLM.from_pretrained(path) for path in made]


class Stage:
    """A worker with what its learner would need."""

    def __init__(self, directory, config, models) -> None:
        self.config, self.models = config, models
        self.worker = WorkerProcess(directory, config)

    def publish(self, version: int) -> None:
        topic = self.config.topics.weights
        publish_version(
            self.config.weights.root, version, self.models[version], bootstrap=self.config.kafka.bootstrap, topic=topic
        )

    def announce(self, announced) -> None:
        announce(self.config.kafka.bootstrap, self.config.topics.weights, announced)


@pytest.fixture(scope="module")
def stage(broker, tmp_path_factory, models):
    """A worker that was up before anything was announced, and serves version 1 now."""
    path, loaded = models
    directory = tmp_path_factory.mktemp("stage")
    (directory / "model").symlink_to(path)
    config = make_config(broker, directory)
    create_topics(config)
    stage = Stage(directory, config, loaded)
    with stage.worker:
        stage.worker.wait_for_log("engine_warm", START_S)
        stage.before = stage.worker.status()
        stage.publish(1)
        stage.worker.wait_until_serving(1, 30)
        yield stage


def logprobs_of(model, response):
    """Of every response token after PROMPT, at temperature 1."""
    return probe_of(model, (*PROMPT, *response))["logprobs"][len(PROMPT) - 1 :]


def largest_difference(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def test_the_port_is_closed_until_the_first_version_is_loaded(stage):
    assert stage.before is None


def test_the_first_version_answers_with_the_logprobs_of_its_weights(stage):
    status, answer = stage.worker.generate(PROMPT, n=2, max_tokens=20, ignore_eos=True)
    assert status == 200
    for choice in answer["choices"]:
        mine = [token["logprob"] for token in choice["logprobs"]["content"]]
        assert choice["weight_versions"] == [{"version": "1", "start": 0, "end": 20}]
        assert largest_difference(mine, logprobs_of(stage.models[1], choice["token_ids"])) < 1e-4


def test_an_update_in_flight_splits_the_answer_where_the_weights_changed(stage):
    answers = []

    def ask():
        answers.append(stage.worker.generate(PROMPT, n=4, max_tokens=1500, ignore_eos=True))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    stage.publish(2)
    asking.join(120)
    status, answer = answers[0]
    assert status == 200
    for choice in answer["choices"]:
        old, new = choice["weight_versions"]
        cut = new["start"]
        assert (old["version"], old["start"], new["version"], new["end"]) == ("1", 0, "2", 1500)
        assert old["end"] == cut
        assert 0 < cut < 1500
        mine = [token["logprob"] for token in choice["logprobs"]["content"]]
        first, second = (logprobs_of(stage.models[version], choice["token_ids"]) for version in (1, 2))
        assert largest_difference(mine[:cut], first[:cut]) < 1e-4
        assert largest_difference(mine[cut:], second[cut:]) < 1e-4
        assert largest_difference(first, second) > 0.1
    status = stage.worker.status()
    assert (status["version"], status["updates"], status["updates_in_flight"]) == (2, 2, 1)
    assert 'asyncflow_worker_updates_total{in_flight="true"} 1.0' in stage.worker.metrics()


def test_a_version_with_a_flipped_bit_is_refused_and_the_old_one_stays(stage):
    model = stage.models[3]
    announced = write_version(stage.config.weights.root, 30, state_of(model), probe=probe_of(model))
    file = Path(version_path(stage.config.weights.root, 30)) / "model.safetensors"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    stage.announce(announced)
    stage.worker.wait_for_log("version_refused", 30)
    assert stage.worker.status()["version"] == 2
    assert 'asyncflow_worker_updates_refused_total{reason="bad_files"} 1.0' in stage.worker.metrics()
    _, answer = stage.worker.generate(PROMPT, max_tokens=5, ignore_eos=True)
    (choice,) = answer["choices"]
    mine = [token["logprob"] for token in choice["logprobs"]["content"]]
    assert largest_difference(mine, logprobs_of(stage.models[2], choice["token_ids"])) < 1e-4


def test_a_request_for_a_newer_version_waits_for_it_and_is_answered_by_it(stage):
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(stage.worker.generate(PROMPT, min_version=3, max_tokens=5, ignore_eos=True))
    )
    asking.start()
    time.sleep(1)
    assert answers == []
    stage.publish(3)
    asking.join(60)
    status, answer = answers[0]
    assert status == 200
    assert answer["choices"][0]["weight_versions"] == [{"version": "3", "start": 0, "end": 5}]


def test_no_route_that_changes_weights_is_exposed(stage):
    import json
    import urllib.request

    with urllib.request.urlopen(f"{stage.worker.url}/openapi.json", timeout=10) as answer:
        routes = set(json.load(answer)["paths"])
    assert "/inference/v1/generate" in routes
    assert not routes & {"/update_weights", "/collective_rpc", "/pause", "/resume", "/sleep", "/reset_prefix_cache"}


def test_sigterm_ends_the_worker_with_0_and_no_process_stays(stage):
    started = stage.worker.descendants()
    assert stage.worker.stop() == 0
    gone_by = time.monotonic() + 10
    while any(psutil.pid_exists(process) for process in started) and time.monotonic() < gone_by:
        time.sleep(0.1)
    assert [process for process in started if psutil.pid_exists(process)] == []


def test_weights_that_contradict_their_probe_end_the_worker_before_it_serves(broker, tmp_path, models):
    path, loaded = models
    (tmp_path / "model").symlink_to(path)
    config = make_config(broker, tmp_path)
    create_topics(config)
    announced = write_version(config.weights.root, 1, state_of(loaded[1]), probe=probe_of(loaded[2]))
    announce(broker, config.topics.weights, announced)
    with WorkerProcess(tmp_path, config) as worker:
        assert worker.process.wait(START_S) == 1
        assert "the engine's logprobs of the probe differ from the learner's" in worker.log
        assert worker.status() is None
