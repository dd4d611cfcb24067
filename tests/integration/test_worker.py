"""The real server, a real broker and a tiny model: versions change while answers are being generated."""

import signal
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from pipelines.local.ports import free_ports
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, ModelConfig, RunConfig, WeightsConfig, WorkerConfig
from schemas.errors import BrokerError, ModelError, PortError
from schemas.weights import WeightVersion, version_path
from tests.support.tiny_model import build_tiny_model
from tests.support.weights import announce, probe_of, publish_version, state_of, write_version
from tests.support.worker import WorkerProcess
from transforms.generation.worker.announcements import Announcements
from transforms.generation.worker.server import run

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


def announcement(version):
    return WeightVersion(
        version=version, step=version, generation=1, manifest_sha256="0" * 64, dtype="float32", base_model="tiny",
        published_at=datetime(2026, 1, 31, tzinfo=UTC),
    )  # fmt: skip


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


def processes_left(started, timeout_s=15):
    gone_by = time.monotonic() + timeout_s
    while any(map(psutil.pid_exists, started)) and time.monotonic() < gone_by:
        time.sleep(0.1)
    return [process for process in started if psutil.pid_exists(process)]


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
        answers.append(stage.worker.generate(PROMPT, n=4, max_tokens=1000, ignore_eos=True))

    asking = threading.Thread(target=ask)
    model = stage.models[2]
    announced = write_version(stage.config.weights.root, 2, state_of(model), probe=probe_of(model))
    asking.start()
    while stage.worker.status()["requests_running"] == 0:
        time.sleep(0.02)
    stage.announce(announced)
    asking.join(300)
    status, answer = answers[0]
    assert status == 200
    for choice in answer["choices"]:
        old, new = choice["weight_versions"]
        cut = new["start"]
        assert (old["version"], old["start"], new["version"], new["end"]) == ("1", 0, "2", 1000)
        assert old["end"] == cut
        assert 0 < cut < 1000
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


def test_records_that_are_no_announcement_are_passed_over(stage):
    stage.announce(b"not json")
    stage.worker.wait_for_log("bad_announcement", 30)
    assert stage.worker.status()["version"] == 3


def test_sigterm_ends_the_worker_with_0_and_no_process_stays(stage):
    started = stage.worker.descendants()
    assert stage.worker.stop() == 0
    assert processes_left(started) == []


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


@pytest.fixture
def ready(broker, tmp_path, models):
    """The configuration of a worker that could start."""
    path, _ = models
    (tmp_path / "model").symlink_to(path)
    return make_config(broker, tmp_path)


def test_an_engine_that_dies_ends_the_worker_and_a_killed_worker_leaves_no_process(ready, models):
    create_topics(ready)
    topic = ready.topics.weights
    publish_version(ready.weights.root, 1, models[1][1], bootstrap=ready.kafka.bootstrap, topic=topic)
    with WorkerProcess(Path(ready.weights.root).parent, ready) as worker:
        worker.wait_until_serving(1, START_S)
        engine = next(child for child in psutil.Process(worker.process.pid).children() if "EngineCore" in child.name())
        started = worker.descendants()
        engine.kill()
        assert worker.process.wait(15) == 1
        assert "the vLLM engine process died" in worker.log
        assert processes_left(started) == []
    with WorkerProcess(Path(ready.weights.root).parent, ready) as worker:
        worker.wait_until_serving(1, START_S)
        started = worker.descendants()
        worker.stop(signal.SIGKILL)
        assert processes_left(started) == []


def test_sigterm_while_the_engine_starts_ends_the_worker_with_0_and_no_process_stays(ready):
    create_topics(ready)
    with WorkerProcess(Path(ready.weights.root).parent, ready) as worker:
        worker.wait_for_log("Initializing a V1 LLM engine", START_S)
        started = worker.descendants()
        assert worker.stop(timeout_s=90) == 0
        assert processes_left(started) == []


def test_a_port_in_use_is_told_before_anything_starts(ready):
    with socket.socket() as other:
        other.bind((ready.worker.host, ready.worker.port))
        other.listen()
        with pytest.raises(PortError, match=f"worker.port {ready.worker.port}: Address already in use"):
            run(ready)


def test_a_missing_topic_is_named(ready):
    with pytest.raises(BrokerError, match=f"topic {ready.topics.weights} does not exist"):
        run(ready)


def test_a_missing_model_is_named(ready):
    missing = ready.model_copy(update={"model": ModelConfig(path="/no/such/model")})
    with pytest.raises(ModelError, match="/no/such/model"):
        run(missing)


def test_a_broker_that_does_not_answer_is_told_in_bounded_time(ready):
    kafka = KafkaConfig(bootstrap=f"127.0.0.1:{free_ports(1)[0]}", request_timeout_s=1)
    with pytest.raises(BrokerError, match="no Kafka broker answered"):
        run(ready.model_copy(update={"kafka": kafka}))


def test_a_setting_that_vllm_refuses_is_the_users_to_mend(ready, models):
    create_topics(ready)
    worker = ready.worker.model_copy(update={"max_model_len_tokens": 10_000})
    topic = ready.topics.weights
    publish_version(ready.weights.root, 1, models[1][1], bootstrap=ready.kafka.bootstrap, topic=topic)
    directory = Path(ready.weights.root).parent
    with WorkerProcess(directory, ready.model_copy(update={"worker": worker})) as process:
        assert process.process.wait(START_S) == 1  # the traceback of a UserError that no command line caught
        assert "ConfigError: vLLM refuses the worker's settings" in process.log


def test_only_the_newest_of_several_announcements_is_taken(run_config):
    announced = [announcement(version) for version in (1, 2, 3)]
    for one in announced:
        announce(run_config.kafka.bootstrap, run_config.topics.weights, one)
    source = Announcements(run_config)
    try:
        assert source.newest(10) == announced[2]
        assert source.newest(0.2) is None
        announce(run_config.kafka.bootstrap, run_config.topics.weights, announcement(4))
        assert source.newest(10) == announcement(4)
    finally:
        source.close()
