"""The whole loop on real parts with a tiny model: broker, Prism, vLLM worker, pipeline, learner.

The learner is killed in the middle. What is checked is read from the log alone, after the run, from
a broker that serves the run's directory again.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from pipelines.audit import audit
from pipelines.drill.rewards import SHARE
from pipelines.local.stack import LEARNER, Stack
from pipelines.local.tiny_model import build_tiny_model
from pipelines.log import RunReader
from pipelines.presets import preset_layer
from pipelines.runs import served
from pipelines.submit import submit
from schemas.config import from_layers, load
from schemas.layers import Layer
from schemas.ledger import CheckpointEntry, StartEntry, surviving_steps
from schemas.weights import version_path

pytestmark = pytest.mark.timeout(900)
STEPS = 14
KILL_AFTER = 6


def configuration(name, model, **learner):
    """The preset cpu-small, made smaller still."""
    tree = {
        "name": name,
        "model": {"path": str(model), "dtype": "float32"},
        "weights": {"keep": 1000},
        "worker": {"max_model_len_tokens": 512, "max_num_seqs": 32, "kv_cache_gib": 0.25},
        "rollout": {"group_size": 4, "max_in_flight": 16, "sampling": {"max_tokens": 192}},
        "rewards": {"modules": ["pipelines.drill.rewards"]},
        "learner": {
            "groups_per_step": 4,
            "learning_rate": 1e-2,
            "checkpoint_every": 4,
            "keep_checkpoints": 2,
            **learner,
        },
    }
    return from_layers([preset_layer("cpu-small"), Layer("the test", "", tree)], "of the test")


def prompts(count):
    reward = {"name": SHARE, "args": {"letter": "7"}}
    chats = ([{"role": "user", "content": f"What is {number % 10}+7?"}] for number in range(count))
    return [json.dumps({"messages": chat, "reward": reward}).encode() for chat in chats]


def train(config, runs, kill_after=None):
    """Runs the stack to the end of the learner; kills the learner once after so many steps."""
    with Stack(config, runs=runs, restarts=3) as stack:
        stack.start_serving()
        submit(stack.config, prompts(400))
        stack.start_rollout()
        reader, killed = RunReader(stack.config.kafka, config.name), False

        def on_tick():
            nonlocal killed
            if kill_after and not killed and len(surviving_steps(reader.advance().ledger)) >= kill_after:
                os.kill(stack.supervisor.pid(LEARNER), signal.SIGKILL)
                killed = True

        stack.wait(on_tick)
        reader.close()
        assert killed == bool(kill_after)
        return stack.directory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, model):
    """A run at staleness 2 whose learner was killed: its directory, log, samples and verdict."""
    config = configuration("e2e-interrupted", model, steps=STEPS, max_staleness=2)
    directory = train(config, tmp_path_factory.mktemp("runs"), KILL_AFTER)
    groups = []
    with served(str(directory)) as config, RunReader(config.kafka, config.name, groups.append) as reader:
        log = reader.advance()
        return directory, log, groups, audit(config.name, log)


def test_the_reward_rises(interrupted):
    _, log, _, _ = interrupted
    rewards = [step.metrics["reward_mean"] for step in surviving_steps(log.ledger)]
    assert len(rewards) == STEPS
    assert sum(rewards[:3]) / 3 < 0.1
    assert sum(rewards[-3:]) / 3 > 2 * sum(rewards[:3]) / 3


def test_a_killed_learner_goes_on_under_a_new_generation_and_nothing_is_lost_or_doubled(interrupted):
    _, log, _, verdict = interrupted
    starts = [entry for entry in log.ledger if isinstance(entry, StartEntry)]
    assert [start.generation for start in starts] == [1, 2]
    assert starts[1].continues.step >= 4
    assert any(isinstance(entry, CheckpointEntry) for entry in log.ledger)
    assert verdict.ok, verdict.faults
    assert verdict.trained == 4 * STEPS


def test_staleness_stays_in_its_bound(interrupted):
    _, _, _, verdict = interrupted
    assert 0 < verdict.staleness_max <= 2 == verdict.staleness_bound


def test_spans_are_right_under_every_version_that_they_name(interrupted):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    directory, log, groups, _ = interrupted
    config = load(directory / "config.toml")
    known = {version.version for version in log.weights}
    spanning = [sample for samples in groups for sample in samples if len(sample.weight_version_spans) > 1]
    assert spanning, "no answer was being written while weights changed"
    policy = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32).eval()
    for sample in spanning[:6]:
        ends = [span.start for span in sample.weight_version_spans[1:]] + [len(sample.response_token_ids)]
        for span, end in zip(sample.weight_version_spans, ends, strict=True):
            assert span.version in known
            state = load_file(Path(version_path(config.weights.root, span.version)) / "model.safetensors")
            policy.load_state_dict(state, strict=False)
            policy.tie_weights()
            expected = logprobs(policy, sample)[span.start : end]
            given = torch.tensor(sample.response_logprobs[span.start : end])
            assert (expected - given).abs().max() < 1e-3, f"{sample.rollout_id}, version {span.version}"


def logprobs(policy, sample):
    import torch

    ids = torch.tensor([[*sample.prompt_token_ids, *sample.response_token_ids]])
    with torch.no_grad():
        table = policy(ids).logits[0].log_softmax(-1)
    start = len(sample.prompt_token_ids)
    return table[range(start - 1, ids.shape[1] - 1), ids[0, start:]]


def test_staleness_0_is_strictly_on_policy(tmp_path, model):
    directory = train(configuration("e2e-on-policy", model, steps=4, max_staleness=0), tmp_path)
    with served(str(directory)) as config, RunReader(config.kafka, config.name) as reader:
        log = reader.advance()
    verdict = audit(config.name, log)
    assert verdict.ok, verdict.faults
    assert (verdict.staleness_max, verdict.staleness_bound) == (0, 0)
    for step in surviving_steps(log.ledger):
        assert {versions for trained in step.trained for versions in trained.versions} == {step.version - 1}
        assert step.metrics["logprob_gap_mean"] < 1e-4
