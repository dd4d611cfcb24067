"""A classifier behind ``asyncflow serve-scorer`` as a process of its own, asked by the scoring stage."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from pipelines.local.ports import free_ports
from pipelines.local.tiny_model import build_tiny_model
from schemas.config import RewardsConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.prompts import Prompt
from schemas.trajectories import Group
from tests.support.judges import write_classifier
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.asking import Asking
from transforms.rewards.processes import RewardProcesses
from transforms.rewards.reward_model import sigmoid
from transforms.score import Scorer

registry.load()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(build_tiny_model(tmp_path_factory.mktemp("policy"), seed=7))


@pytest.fixture(scope="module")
def port():
    (port,) = free_ports(1)
    return port


class ScorerProcess:
    def __init__(self, directory, port, *flags):
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "pipelines.cli.main", "serve-scorer", "--device", "cpu"]
        command += ["--model", str(directory), "--port", str(port), *flags]
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)

    def wait(self):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stderr.read().decode()
            try:
                return urllib.request.urlopen(f"{self.url}/health", timeout=5).status
            except OSError:
                time.sleep(0.1)
        raise AssertionError("it did not come up")

    def figure(self, name):
        lines = urllib.request.urlopen(f"{self.url}/metrics", timeout=5).read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@contextmanager
def serving(directory, port, *flags):
    server = ScorerProcess(directory, port, *flags)
    try:
        server.wait()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(directory, port):
    with serving(directory, port, "--wait-ms", "20") as server:
        yield server


@pytest.fixture
def make_scorer(port):
    made = []

    def make(model="", **settings):
        settings = {"url": f"http://127.0.0.1:{port}", "timeout_s": 20, "patience_s": 60, "open_s": 0.3, **settings}
        config = RewardsConfig.model_validate({"reward_models": {"good": settings}})
        made.append((Asking(config, model), RewardProcesses(config)))
        return Scorer(made[-1][1], made[-1][0])

    yield make
    for asking, processes in made:
        asking.stop()
        processes.stop()


def group(*answers, attempt="a1", squashed=False, **form):
    reward = {"name": "reward_model", "args": {"model": "good", "sigmoid": squashed}}
    prompt = Prompt.model_validate({**(form or {"token_ids": [7, 8]}), "reward": reward})
    samples = tuple(
        replace(
            SAMPLE, sample_index=index, attempt_id=attempt, prompt_token_ids=(7, 8), response_token_ids=tuple(answer),
            response_text="ab", reward=None, reward_parts={},
        )
        for index, answer in enumerate(answers)
    )  # fmt: skip
    return Group(GroupId(0, 38), prompt, samples, b"value")


def alone(directory, row):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return float(model.score(model.model(torch.tensor([row])).last_hidden_state)[0, -1, 0])


def rewards(scorer, asked):
    return [sample.reward for sample in scorer.finish(RunConfig(), asked).samples]


def test_token_ids_of_the_engine_are_scored_in_batches_as_the_model_scores_them_alone(
    server, make_scorer, policy, directory
):
    scorer = make_scorer(policy)
    answers = [[9], [9, 10, 0], [11] * 30, [12, 2], [2], [13, 0, 0]]
    expected = [alone(directory, [7, 8, *answer]) for answer in answers]
    assert rewards(scorer, group(*answers)) == pytest.approx(expected, abs=1e-5)
    squashed = rewards(scorer, group(*answers, attempt="a2", squashed=True))
    assert squashed == pytest.approx([sigmoid(number) for number in expected], abs=1e-5)
    many = [group(*answers, attempt=f"b{index}") for index in range(40)]
    before = [server.figure("asyncflow_scorer_pass_rows_count"), server.figure("asyncflow_scorer_rows_total")]
    for each in many:
        scorer.begin(each)
    assert all(rewards(scorer, each) == pytest.approx(expected, abs=1e-5) for each in many)
    passes = server.figure("asyncflow_scorer_pass_rows_count") - before[0]
    assert server.figure("asyncflow_scorer_rows_total") - before[1] == 240
    assert passes < 120, "fewer passes than answers"
    assert server.figure('asyncflow_scorer_rows_total{read="text"}') == 0


def test_text_is_read_if_the_vocabulary_is_not_known_and_token_ids_alone_are_refused(server, make_scorer, directory):
    from transformers import AutoTokenizer

    scorer = make_scorer()
    messages = [{"role": "user", "content": "1+1"}]
    ids = AutoTokenizer.from_pretrained(directory).encode("<|user|>1+1<|assistant|>ab", add_special_tokens=False)
    got = rewards(scorer, group([9], messages=messages))
    assert got == pytest.approx([alone(directory, ids)], abs=1e-5)
    assert server.figure('asyncflow_scorer_rows_total{read="text"}') == 1
    refused = scorer.finish(RunConfig(), group([9], attempt="a2"))
    assert isinstance(refused, DeadLetter)
    assert refused.reason == "reward_model_refused"
    assert "there is no text of it" in refused.detail


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 422), (b"{", 422), (b'{"vocabulary": null}', 422), (b"[" * 100_000, 422), (b" " * (17 << 20), 413),
     (b'{"vocabulary":null,"prompt_token_ids":[-1],"response_token_ids":[],"response_text":""}', 422)],
)  # fmt: skip
def test_rubbish_is_refused_and_the_server_goes_on(server, make_scorer, policy, body, status):
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]), timeout=20)
    try:
        connection.request("POST", "/v1/score", body, {"Content-Length": str(len(body))})
        assert connection.getresponse().status == status
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413, "it may close before all was sent"
    assert rewards(make_scorer(policy), group([9]))[0] is not None


def test_a_server_that_is_killed_and_started_again_costs_no_reward(make_scorer, policy, directory):
    (port,) = free_ports(1)
    scorer = make_scorer(policy, url=f"http://127.0.0.1:{port}")
    groups = [group([9, index % 80], [10], attempt=f"c{index}") for index in range(200)]
    with serving(directory, port, "--batch-rows", "2") as server:
        for each in groups[:150]:
            scorer.begin(each)
        while server.figure("asyncflow_scorer_rows_total") < 20:
            time.sleep(0.01)
        server.process.kill()
        server.process.wait()
    for each in groups[150:]:
        scorer.begin(each)
    with serving(directory, port):
        found = [rewards(scorer, each) for each in groups]
    assert all(number is not None for each in found for number in each)


def test_it_ends_in_good_order(directory):
    (port,) = free_ports(1)
    with serving(directory, port) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_port_that_is_taken_and_a_model_that_is_none_are_told(server, directory, tmp_path):
    port = server.url.rsplit(":", 1)[1]
    again = ScorerProcess(directory, port)
    assert again.process.wait(60) == 2
    assert b"serve-scorer.port" in again.process.stderr.read()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (free,) = free_ports(1)
    none = ScorerProcess(tmp_path, free)
    assert none.process.wait(60) == 2
    assert b"expected a sequence classifier" in none.process.stderr.read()
