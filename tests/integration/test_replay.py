"""``replay`` on runs of the tiny model: what was trained can be trained again, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from pipelines.local.tiny_model import build_tiny_model
from schemas.errors import ConfigError, RunError
from schemas.trajectories import Span
from schemas.weights import version_path
from tests.support.trajectories import (
    Rollouts,
    assert_consistent,
    learn,
    read_all,
    read_ledger,
    shared_ranks,
    steps_of,
    verdict_of,
    weight_hash,
    write_prompts,
)
from trainers.commit import Committer
from trainers.replay import first_difference, replay


def again(config, step=None):
    return replay(config, shared_ranks(), step)


def with_dtype(config, dtype):
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


def keeping(config, versions):
    return config.model_copy(update={"weights": config.weights.model_copy(update={"keep": versions})})


def files_below(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def stored(config, version):
    return Path(version_path(config.weights.root, version)) / "model.safetensors"


@pytest.fixture
def trained(make_config, model_dir):
    """Seven steps with checkpoints at 3, 6 and 7, the last weights only."""
    config = keeping(make_config(steps=7, keep_checkpoints=9, schedule="cosine"), 2)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        learn(config)
    return config


def test_any_step_is_trained_again_to_the_announced_bits_and_nothing_is_written(trained, tmp_path):
    names = [trained.topics.ledger, trained.topics.weights, trained.topics.admission, trained.topics.dead_letters]
    files, records = files_below(tmp_path), [len(read_all(trained, name)) for name in names]
    committer = Committer(trained)
    last, middle, first = again(trained), again(trained, 5), again(trained, 2)
    committer.commit([])  # no replay has fenced it
    committer.close()
    assert (last.step, last.from_checkpoint, last.steps_replayed, last.stored) == (7, 6, 1, "equal")
    assert (middle.step, middle.from_checkpoint, middle.steps_replayed, middle.stored) == (5, 3, 2, "gone")
    assert (first.step, first.from_checkpoint, first.steps_replayed, first.stored) == (2, None, 2, "gone")
    for found in (last, middle, first):
        assert found.equal
        assert found.got_sha256 == found.expected_sha256
    assert (middle.groups, middle.samples) == (6, 24)
    line = steps_of(trained)
    assert middle.tokens == line[3].metrics["tokens"] + line[4].metrics["tokens"]
    assert files_below(tmp_path) == files
    assert [len(read_all(trained, name)) for name in names] == records


def test_what_differs_is_named(trained):
    file = stored(trained, 8)
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    torn = again(trained)
    assert torn.got_sha256 == torn.expected_sha256
    assert not torn.equal
    assert "model.norm.weight differs in 1 of 64 values" in torn.stored
    other = trained.model_copy(update={"learner": trained.learner.model_copy(update={"max_grad_norm": 0.1})})
    changed = again(other)
    assert changed.got_sha256 != changed.expected_sha256
    assert not changed.equal
    file.write_bytes(b"junk")
    assert "not a safetensors file" in again(trained).stored


def test_steps_that_were_done_again_and_those_of_dead_lines(make_config, model_dir, tmp_path):
    config = make_config(steps=4, checkpoint_every=2)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        learn(config)
        newest = next((tmp_path / "checkpoints").glob("g0001-s00000004-*"))
        (newest / "MANIFEST.json").unlink()
        config = make_config(steps=5, checkpoint_every=4)
        learn(config)
    _, line = assert_consistent(config)
    assert [entry.generation for entry in line] == [1, 1, 2, 2, 2]
    for step, version in ((2, 3), (3, 7), (5, 9)):
        found = again(config, step)
        assert found.equal
        assert found.version == version


def test_a_checkpoint_that_does_not_verify_is_passed_over(trained, tmp_path):
    for directory in (tmp_path / "checkpoints").glob("g*-s00000003-*"):
        (directory / "state.json").write_text("{}")
    found = again(trained, 5)
    assert found.equal
    assert found.from_checkpoint is None


def test_what_cannot_be_replayed_is_told_in_one_sentence(trained, tmp_path):
    with pytest.raises(RunError, match=r"step 99 is not on the surviving line .* steps 1 to 7"):
        again(trained, 99)
    other = build_tiny_model(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"model is 'model\d+' in the checkpoint and 'other' now"):
        again(trained.model_copy(update={"model": trained.model.model_copy(update={"path": str(other)})}))
    client = KafkaAdminClient(**trained.kafka.client_options())
    for partition in range(trained.kafka.partitions):
        client.delete_records({TopicPartition(trained.topics.trajectories, partition): -1})
    client.close()
    with pytest.raises(RunError, match=r"step 7 cannot be trained again: .* records are lost"):
        again(trained, 7)


def test_a_run_without_steps_is_told(run_config):
    with pytest.raises(RunError, match="has no step yet"):
        again(run_config)


def test_bfloat16_is_trained_again_to_the_same_bits(make_config, model_dir):
    config = with_dtype(make_config(steps=5), "bfloat16")
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        learn(config)
    auto = with_dtype(config, "auto")
    assert len({weight_hash(config, version) for version in range(1, 7)}) == 6
    assert again(auto, 5).equal
    assert again(auto, 2).equal


class LongAnswers(Rollouts):
    """Every answer but the first began two weight versions before it ended."""

    def make_group(self, name, token_ids, announced, attempt="first"):
        samples = super().make_group(name, token_ids, announced, attempt)
        began = max(1, announced.version - 2)
        if began == announced.version:
            return samples
        spans = (Span(began, 0), Span(announced.version, 1))
        return [replace(sample, weight_version_spans=spans, weight_version_min=began) for sample in samples]


def test_an_adapter_is_trained_again_to_the_same_bits_also_beyond_a_restart(make_config, model_dir, tmp_path):
    changes = {"lora": {"rank": 4, "alpha": 8}, "checkpoint_every": 2, "keep_checkpoints": 9}
    config = make_config(steps=3, **changes)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        learn(config)
        config = make_config(steps=5, **changes)
        learn(config)
    for step, checkpoint in ((1, None), (4, 3), (5, 4)):
        found = again(config, step)
        assert found.equal
        assert found.from_checkpoint == checkpoint
    assert found.stored == "equal"
    names = {path.name for path in Path(version_path(config.weights.root, found.version)).iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "MANIFEST.json"}
    assert_consistent(config)
    with pytest.raises(ConfigError, match=r"lora\.rank is 4 in the checkpoint and 8 now"):
        learn(make_config(steps=6, lora={"rank": 8}))


def test_tokens_that_were_too_old_are_left_out_again(make_config, model_dir):
    config = make_config(steps=6, max_staleness=1, max_token_staleness=1)
    write_prompts(config, 60)
    with LongAnswers(config, model_dir):
        learn(config)
    left_out = [entry for entry in steps_of(config) if entry.too_old]
    assert left_out
    assert all(entry.metrics["tokens_too_old"] > 0 for entry in left_out)
    whole = config.model_copy(update={"learner": config.learner.model_copy(update={"max_token_staleness": None})})
    assert again(config).equal
    assert again(whole, left_out[0].step).equal, "the ledger says what was left out"
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults
    assert verdict.staleness_max <= 1


def test_steps_are_computed_with_as_many_threads_as_the_learner_had(trained, monkeypatch):
    from trainers.engine import Engine

    seen, train = [], Engine.train

    def note(self, *arguments):
        seen.append(torch.get_num_threads())
        return train(self, *arguments)

    monkeypatch.setattr(Engine, "train", note)
    threads = torch.get_num_threads()
    assert read_ledger(trained)[0].numerics.threads == threads
    torch.set_num_threads(threads + 1)
    try:
        assert again(trained, 7).equal
    finally:
        torch.set_num_threads(threads)
    assert seen == [threads]


def test_the_command_prints_one_object_whatever_libraries_print_and_threads_the_machine_has(
    make_config, model_dir, nursery, tmp_path
):
    config = make_config(steps=3)
    write_prompts(config, 30)
    with Rollouts(config, model_dir):
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
    command = [sys.executable, "-m", "pipelines.cli.main", "replay", str(tmp_path), "--step", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["step"], found["from_checkpoint"], found["equal"], found["stored"]) == (2, None, True, "equal")


def test_the_first_tensor_that_differs_is_named():
    made = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    assert first_difference({**made}, made) == "the same tensors in other bytes"
    assert first_difference({"a": made["a"]}, made) == "b is only in the replayed weights"
    assert first_difference({**made, "c": made["a"]}, made) == "c is only in the stored weights"
    assert first_difference({**made, "b": torch.ones(4)}, made) == "b has shape [4], replayed [2, 2]"
    near = {"a": torch.tensor([0.0, 0.5, -2.0]), "b": torch.zeros(2, 2)}
    assert first_difference(near, made) == "a differs in 2 of 3 values, by at most 2"
