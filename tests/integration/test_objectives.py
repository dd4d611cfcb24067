"""Objectives that keep something from step to step, on a real broker."""

import json
from pathlib import Path

from schemas.weights import WeightVersion
from tests.support.trajectories import (
    Rollouts,
    assert_consistent,
    learn,
    read_all,
    shared_ranks,
    write_prompts,
)
from trainers.replay import replay

LIVE = {
    "name": "rloo",
    "advantage": "running_baseline",
    "baseline_momentum": 0.5,
    "correction": "truncated_sequence",
    "length_penalty": 0.1,
}

PPO = {"name": "ppo", "gae_lambda": 1.0, "kl_coefficient": 0.05, "kl_place": "reward", "correction": "truncated_token"}


def baselines(config):
    """For each step with a checkpoint its running baselines."""
    states = [json.loads(file.read_bytes()) for file in Path(config.learner.checkpoint_root).glob("g*/state.json")]
    return {state["step"]: state["baselines"] for state in states}


def test_groups_of_one_are_trained_against_a_running_baseline_and_again_to_the_same_bits(make_config, model_dir):
    config = make_config(steps=5, objective=LIVE, keep_checkpoints=9)
    write_prompts(config, 60)
    with Rollouts(config, model_dir, group_size=1, reward=lambda group, _: float(group.offset % 2)):
        learn(config)
    _, line = assert_consistent(config)
    assert [[each.samples for each in entry.trained] for entry in line] == [[1, 1, 1]] * 5
    assert all(0 <= entry.metrics["correction_cut"] <= 1 for entry in line)
    kept = baselines(config)
    assert kept.keys() == {3, 5}
    assert kept[3]
    assert kept[3] != kept[5]
    assert replay(config, shared_ranks(), 5).equal, "the baselines of the checkpoint count"
    assert replay(config, shared_ranks(), 3).equal, "and those of the steps before it"


def test_groups_of_one_teach_a_value_head_in_several_updates_and_again_to_the_same_bits(make_config, model_dir):
    config = make_config(steps=4, objective=PPO, minibatches=2)
    write_prompts(config, 60)
    with Rollouts(config, model_dir, group_size=1, reward=lambda *_: 1.0):
        learn(config)
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3] * 4, "equal rewards teach"
    assert [entry.metrics["updates"] for entry in line] == [2] * 4
    assert line[-1].metrics["value_loss"] < line[0].metrics["value_loss"]
    announced = [WeightVersion.decode(record.value) for record in read_all(config, config.topics.weights)]
    assert [each.step for each in announced] == [0, 1, 2, 3, 4], "one version a step"
    assert replay(config, shared_ranks(), 4).equal, "the value head of the checkpoint counts"
    assert replay(config, shared_ranks(), 2).equal
