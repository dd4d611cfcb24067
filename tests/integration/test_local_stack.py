"""The local stack with the real broker and the real Prism; worker, learner and pipeline are small stand-ins."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pipelines.local import stack as stack_module
from pipelines.local.ports import accepts
from pipelines.local.stack import BROKER, EVALUATOR, LEARNER, PRISM, ROLLOUT, WORKER, Stack, saved_config
from pipelines.presets import preset_layer
from schemas.config import (
    EnvironmentsConfig,
    LearnerConfig,
    LocalConfig,
    ModelConfig,
    RewardsConfig,
    RolloutConfig,
    RunConfig,
    WeightsConfig,
    WorkerConfig,
    from_layers,
    load,
)
from schemas.errors import ConfigError, ModelError, PortError, ProcessDied, RunError
from tests.support.models import write_model

STAND_IN = """
import http.server, os, signal, socket, sys, time
from pathlib import Path
from schemas.config import load
verb, config = sys.argv[1], load(Path(sys.argv[3]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
told = {name: os.environ.get(name) for name in ("RANK", "CUDA_VISIBLE_DEVICES")}
print(verb, *sys.argv[4:], *(f"{name}={value}" for name, value in told.items() if value is not None), flush=True)
print(os.environ.get("OMP_NUM_THREADS"), flush=True)
class Status(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/asyncflow/status" else 404)
        self.end_headers()
if verb == "worker":
    port = int(sys.argv[5]) if "--worker.port" in sys.argv else config.worker.port
    http.server.HTTPServer((config.worker.host, port), Status).serve_forever()
if verb == "evaluate":
    assert Path(sys.argv[5]).is_absolute(), sys.argv
    while not (Path(config.learner.checkpoint_root).parent / "evaluated").exists():
        time.sleep(0.02)
    sys.exit(0)
port = config.learner.metrics_port if verb == "learn" else config.rollout.metrics_port
if os.environ.get("RANK", "0") == "0":
    listener = socket.create_server(("127.0.0.1", port))
finish = Path(config.learner.checkpoint_root).parent / "finish"
while not (verb == "learn" and finish.exists()):
    time.sleep(0.02)
"""


@pytest.fixture
def model(tmp_path):
    return ModelConfig(path=str(write_model(tmp_path / "model")), dtype="float32")


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path, monkeypatch):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(stack_module, "asyncflow_command", lambda: [sys.executable, str(script)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # stand-ins tell it


def preset(name, run, model):
    """A run that starts from a preset."""
    config = from_layers([preset_layer(name)], name)
    return config.model_copy(update={"name": run, "model": config.model.model_copy(update={"path": model.path})})


def test_two_stacks_run_at_once_and_leave_nothing(tmp_path, model):
    with (
        Stack(preset("gpu-1", "one", model), runs=tmp_path) as one,
        Stack(preset("cpu-small", "two", model), runs=tmp_path) as two,
    ):
        pids = []
        for stack in (one, two):
            stack.start_serving()
            stack.start_rollout()
            stack.supervisor.wait_ready(ROLLOUT)
            pids += [stack.supervisor.pid(name) for name in (BROKER, PRISM, WORKER, LEARNER, ROLLOUT)]
            (stack.directory / "finish").touch()
        one.wait()
        two.wait()
        ports = [_port(stack, key) for stack in (one, two) for key in ("kafka", "worker")]
        assert len(set(ports)) == 4
        assert all(accepts(port) for port in ports)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(accepts(port) for port in ports)
    assert not list(tmp_path.glob("*/pids.*"))


def test_on_four_gpus_each_worker_has_its_own_and_the_ranks_have_the_others(tmp_path, model, monkeypatch):
    monkeypatch.setattr(stack_module, "visible_gpus", lambda: tuple("0123"))
    config = preset("gpu-8", "run", model).model_copy(update={"local": LocalConfig(workers=2, ranks=2)})
    with Stack(config, runs=tmp_path) as stack:
        stack.start_serving()
        stack.supervisor.wait_ready(LEARNER)
        logs = {name: stack.supervisor.log(name) for name in (LEARNER, WORKER, "worker-2")}
        _wait_for(lambda: logs[LEARNER].read_text().count("learn RANK=") == 2)
        for rank in range(2):
            assert f"learn RANK={rank} CUDA_VISIBLE_DEVICES=0,1\n" in logs[LEARNER].read_text()
        said = [logs[name].read_text().split("\n")[0].split() for name in (WORKER, "worker-2")]
        assert [words[-1] for words in said] == ["CUDA_VISIBLE_DEVICES=2", "CUDA_VISIBLE_DEVICES=3"]
        ports = [stack.config.worker.port, int(said[1][2])]
        assert stack.workers() == [f"http://127.0.0.1:{port}" for port in ports]
        assert all(accepts(port) for port in ports)
        (stack.directory / "finish").touch()
        stack.wait()
    assert not any(accepts(port) for port in ports)


def _port(stack, key):
    return int(stack.config.kafka.bootstrap.rpartition(":")[2]) if key == "kafka" else stack.config.worker.port


def test_the_resolved_configuration_is_whole_and_every_process_reads_it(tmp_path, model):
    data = EnvironmentsConfig(data={"tau_retail": Path("data/retail")})
    given = RunConfig(
        name="run", model=model, weights=WeightsConfig(root="mem://store"), rollout=RolloutConfig(environments=data),
        rewards=RewardsConfig(modules=("mine.py", "my.rewards")),
    )  # fmt: skip
    with Stack(given, runs=tmp_path) as stack:
        stack.start_serving()
        stack.start_rollout()
        stack.supervisor.wait_ready(ROLLOUT)
        written = load(stack.directory / "config.toml")
        assert written == stack.config
        assert written.weights.root == "mem://store"
        assert written.rollout.environments.data == {"tau_retail": Path.cwd() / "data" / "retail"}
        assert written.rewards.modules == (str(Path.cwd() / "mine.py"), "my.rewards")
        assert written.learner.checkpoint_root == str(tmp_path / "run" / "checkpoints")
        assert written.rollout.workers == (f"http://127.0.0.1:{written.worker.port}",)
        assert 0 not in (written.rollout.metrics_port, written.learner.metrics_port)
        log = stack.supervisor.log(ROLLOUT)
        _wait_for(lambda: "rollout --runner=PortableRunner --job_endpoint=127.0.0.1:" in log.read_text())
        assert log.read_text().endswith(" --environment_type=LOOPBACK\n1\n")


def test_a_learner_that_dies_is_started_again_and_one_that_may_not_die_ends_the_run(tmp_path, model):
    with Stack(preset("live-feedback", "run", model), runs=tmp_path, restarts=1) as stack:
        stack.start_serving()
        first = stack.supervisor.pid(LEARNER)
        os.kill(first, signal.SIGKILL)
        _wait_for(lambda: stack.supervisor.tick() or stack.supervisor.pid(LEARNER) not in (first, None))
        os.kill(stack.supervisor.pid(LEARNER), signal.SIGKILL)
        with pytest.raises(ProcessDied, match=r"learner ended \(signal SIGKILL\)"):
            stack.wait()


def test_a_broker_that_is_killed_comes_back_with_its_log(tmp_path, model):
    from kafka import KafkaProducer

    from tests.integration.test_broker import _consume

    with Stack(RunConfig(name="run", model=model), runs=tmp_path, restarts=1) as stack:
        stack.start_serving()
        topic = stack.config.topics.prompts
        producer = KafkaProducer(**stack.config.kafka.producer_options())
        producer.send(topic, b"kept", partition=0).get(timeout=60)
        producer.close()
        first = stack.supervisor.pid(BROKER)
        os.kill(first, signal.SIGKILL)
        _wait_for(lambda: stack.supervisor.tick() or stack.supervisor.deaths()[BROKER])
        stack.supervisor.wait_ready(BROKER)
        assert stack.supervisor.pid(BROKER) != first
        assert _consume(stack.config, topic) == [b"kept"]


def test_a_run_in_use_one_that_exists_and_one_that_does_not_are_told_apart(tmp_path, model):
    other = "http://gpu-7.internal:8000"
    config = RunConfig(name="run", model=model, rollout=RolloutConfig(workers=(other,)))
    with Stack(config, runs=tmp_path) as first:
        with (
            pytest.raises(RunError, match=r"in use by another process \(its log: 127\.0\.0\.1:"),
            Stack(config, runs=tmp_path, resume=True),
        ):
            pass
        before = first.config
    with pytest.raises(RunError, match="asyncflow up --name run --resume"), Stack(config, runs=tmp_path):
        pass
    with (
        pytest.raises(RunError, match="no run 'other' to resume"),
        Stack(config.model_copy(update={"name": "other"}), runs=tmp_path, resume=True),
    ):
        pass
    with Stack(saved_config("run", tmp_path), runs=tmp_path, resume=True) as again:
        assert again.config.weights == before.weights
        assert again.config.kafka.bootstrap != before.kafka.bootstrap
        assert again.config.rollout.workers == (f"http://127.0.0.1:{again.config.worker.port}", other)


def test_a_port_that_was_asked_for_and_is_taken_is_named_with_its_key(tmp_path, model, broker):
    taken = int(broker.rpartition(":")[2])
    config = RunConfig(name="run", model=model, worker=WorkerConfig(port=taken))
    with pytest.raises(PortError, match=f"worker.port = {taken}"), Stack(config, runs=tmp_path):
        pass
    assert not (tmp_path / "run" / "config.toml").exists(), "a run that did not start can be started again"


def test_a_foreign_broker_is_refused(tmp_path, model):
    config = RunConfig(name="run", model=model, kafka={"bootstrap": "kafka-1:9092"})
    with pytest.raises(ConfigError, match="starts a broker of its own"), Stack(config, runs=tmp_path):
        pass


def test_a_missing_model_and_an_incomplete_one_are_told(tmp_path, model):
    with (
        pytest.raises(ModelError, match=r"/nowhere'.*no such directory"),
        Stack(RunConfig(model=ModelConfig(path="/nowhere")), runs=tmp_path),
    ):
        pass
    (Path(model.path) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks \*\.safetensors"), Stack(RunConfig(model=model), runs=tmp_path):
        pass


def test_too_little_room_is_told_in_numbers_before_anything_starts(tmp_path, model, monkeypatch):
    from schemas.errors import DiskError

    monkeypatch.setattr(stack_module.shutil, "disk_usage", lambda _: _Usage())
    config = RunConfig(name="run", model=model, learner=LearnerConfig(keep_checkpoints=2))
    with pytest.raises(DiskError, match=r"has 0\.5 GB free and the run needs 1\.1 GB"), Stack(config, runs=tmp_path):
        pass


def test_room_is_counted_for_versions_that_evaluations_hold(tmp_path, model, monkeypatch):
    from schemas.errors import DiskError

    monkeypatch.setattr(stack_module.shutil, "disk_usage", lambda _: _Usage())
    config = RunConfig(name="run", model=model, weights=WeightsConfig(keep=2))

    def told(**options):
        with pytest.raises(DiskError) as caught, Stack(config, runs=tmp_path, **options):
            pass
        return str(caught.value)

    assert "3 weight versions, 0 of them held" in told()
    assert "5 weight versions, 2 of them held" in told(held_out=tmp_path / "held-out.jsonl")
    holds = tmp_path / "run" / "weights" / "held"
    holds.mkdir(parents=True)
    for name in ("00000003.best", "00000007.best", "00000007.other", "00000009.other"):
        (holds / name).touch()
    assert "6 weight versions, 3 of them held" in told()


def test_evaluator_is_looked_after_and_waited_for(tmp_path, model):
    with Stack(RunConfig(name="one", model=model), runs=tmp_path, restarts=1, held_out=tmp_path / "h.jsonl") as stack:
        stack.start_serving()
        stack.start_rollout()
        stack.start_evaluator()
        before = stack.supervisor.pid(EVALUATOR)
        os.kill(before, signal.SIGKILL)
        (stack.directory / "finish").touch()

        def finish():
            again = stack.supervisor.pid(EVALUATOR)
            if stack.supervisor.is_done(LEARNER) and again not in (before, None):
                (stack.directory / "evaluated").touch()

        stack.wait(finish)
        assert stack.supervisor.is_done(EVALUATOR)


class _Usage:
    free = 500_000_000


def _wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.05)
