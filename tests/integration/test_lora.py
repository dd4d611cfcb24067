"""Adapters, from the learner's publisher through the real server: they change while answers are being generated."""

import json
import signal
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
import torch

from pipelines.local.ports import free_ports
from pipelines.local.topics import create_topics
from schemas.config import validate
from schemas.weights import WeightVersion, version_path
from tests.support.trajectories import wait_until
from tests.support.weights import announce, probe_of, publish_version
from tests.support.worker import WorkerProcess
from trainers.lora import Adapter, adapter_of, add_adapter
from trainers.policy import Policy, load_model
from trainers.publish import Facts, WeightStore

PROMPT = (1, 9, 16, 10, 18)
START_S = 180


class Stage:
    """A worker of a run that trains an adapter, and the part of its learner that publishes."""

    def __init__(self, directory, broker, model_dir) -> None:
        self.model_dir = model_dir
        self.config = validate(
            {
                "name": "test-lora",
                "kafka": {"bootstrap": broker},
                "model": {"path": str(model_dir), "dtype": "float32"},
                "weights": {"root": str(directory / "weights")},
                "worker": {"port": free_ports(1)[0], "max_num_seqs": 8, "kv_cache_gib": 0.25},
                "rollout": {"group_size": 4},
                "learner": {"lora": {"rank": 4, "alpha": 8}},
            },
            "test",
        )
        create_topics(self.config)
        self.worker = WorkerProcess(directory, self.config)
        self._causal = load_model(str(model_dir), torch.float32)
        add_adapter(self._causal, model_dir, self.config.learner.lora, seed=0)
        self.version = 0

    def write(self) -> WeightVersion:
        """The next version: an adapter that answers differently."""
        self.version += 1
        torch.manual_seed(self.version)
        with torch.no_grad():
            for tensor in adapter_of(dict(self._causal.named_parameters())).values():
                tensor.normal_(std=0.3)
        probe = list(range(6, 20))
        told = {"token_ids": probe, "logprobs": Policy(self._causal, 1.0).probe(probe)}
        facts = Facts(self.version, self.version, "float32", Adapter.of(self.config))
        with closing(WeightStore(self.config.weights)) as store:
            adapter = adapter_of(dict(self._causal.named_parameters()))
            digest = store.write(adapter, facts, lambda: told)
        return WeightVersion(version=self.version, step=self.version, generation=1, manifest_sha256=digest,
                             dtype="float32", base_model=self.model_dir.name)  # fmt: skip

    def announce(self, announced) -> None:
        announce(self.config.kafka.bootstrap, self.config.topics.weights, announced)

    def publish(self) -> int:
        """Returns the next version once it is served."""
        self.announce(self.write())
        self.worker.wait_until_serving(self.version, START_S)
        return self.version

    def directory(self, version) -> Path:
        return Path(version_path(self.config.weights.root, version))

    def logprobs_of(self, version, response):
        """Of every response token after PROMPT, by peft from what was published."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.model_dir), self.directory(version))
        return probe_of(model.eval(), (*PROMPT, *response))["logprobs"][len(PROMPT) - 1 :]


@pytest.fixture(scope="module")
def stage(broker, tmp_path_factory, model_dir):
    stage = Stage(tmp_path_factory.mktemp("lora"), broker, model_dir)
    yield stage
    stage.worker.stop(signal.SIGKILL)


def largest_difference(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def served(choice):
    return [token["logprob"] for token in choice["logprobs"]["content"]]


def test_all_routes_answer_by_the_newest_adapter(stage):
    version = stage.publish()
    _, answer = stage.worker.generate(PROMPT, n=2, max_tokens=20, ignore_eos=True)
    for choice in answer["choices"]:
        assert choice["weight_versions"] == [{"version": f"{version}", "start": 0, "end": 20}]
        assert largest_difference(served(choice), stage.logprobs_of(version, choice["token_ids"])) < 1e-4
    asked = {"model": stage.model_dir.name, "prompt": list(PROMPT), "max_tokens": 8, "logprobs": 0, "temperature": 1,
             "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    request = urllib.request.Request(
        f"{stage.worker.url}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        choice = json.load(reply)["choices"][0]
    right = stage.logprobs_of(version, choice["token_ids"])
    assert largest_difference(choice["logprobs"]["token_logprobs"], right) < 1e-4


def test_an_answer_in_flight_goes_on_under_the_next_adapter(stage):
    before, answers = stage.publish(), []
    asking = threading.Thread(
        target=lambda: answers.append(stage.worker.generate(PROMPT, n=4, max_tokens=200, ignore_eos=True))
    )
    announced = stage.write()
    asking.start()
    while stage.worker.status()["requests_running"] == 0:
        time.sleep(0.02)
    stage.announce(announced)
    asking.join(300)
    for choice in answers[0][1]["choices"]:
        old, new = choice["weight_versions"]
        assert (old["version"], new["version"], new["end"]) == (f"{before}", f"{announced.version}", 200)
        cut, mine = new["start"], served(choice)
        first, second = (stage.logprobs_of(version, choice["token_ids"]) for version in (before, announced.version))
        assert 0 < cut < 200
        assert largest_difference(mine[:cut], first[:cut]) < 1e-4
        assert largest_difference(mine[cut:], second[cut:]) < 1e-4
        assert largest_difference(first, second) > 0.1


def test_whole_weights_and_torn_adapters_are_refused_and_the_old_one_is_served(stage):
    version = stage.publish()
    announced = stage.write()
    file = stage.directory(announced.version) / "adapter_model.safetensors"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    stage.announce(announced)
    refusals(stage, 1)
    stage.version += 1
    model = load_model(str(stage.model_dir), torch.float32)
    stage.announce(publish_version(stage.config.weights.root, stage.version, model))
    refusals(stage, 2)
    for reason in ("bad_files", "bad_manifest"):
        assert f'asyncflow_worker_updates_refused_total{{reason="{reason}"}} 1.0' in stage.worker.metrics()
    _, answer = stage.worker.generate(PROMPT, max_tokens=5, ignore_eos=True)
    (choice,) = answer["choices"]
    assert largest_difference(served(choice), stage.logprobs_of(version, choice["token_ids"])) < 1e-4


def refusals(stage, count):
    wait_until(lambda: stage.worker.status()["refused"] == count)
