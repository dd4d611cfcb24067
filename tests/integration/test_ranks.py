"""Ranks, stages and packs are ways to compute the same weights."""

import os
import subprocess
import sys

import pytest
import torch

from pipelines.local.tiny_model import build_tiny_model
from tests.support.five_steps import ADAPTER, CASES, PPO, PULLED, REWARD, STEPS, five_steps, make_engine, take_step
from tests.support.trajectories import shared_ranks
from trainers.scorers import RewardModel

_START_S = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def by_one_rank(model):
    return weights_by_one_rank(model)


@pytest.fixture(scope="module")
def others_by_one_rank(model):
    """Of the cases that lead elsewhere."""
    return {
        "ppo": weights_by_one_rank(model, **PPO),
        "adapter": weights_by_one_rank(model, **ADAPTER),
        REWARD: weights_by_one_rank(model, RewardModel),
        "pulled": weights_by_one_rank(model, **PULLED),
    }


def weights_by_one_rank(model, *make, **learner):
    engine = five_steps(model, shared_ranks(), *make, **learner)
    return {name: tensor.clone() for name, tensor in engine.state_dict().items()}


@pytest.fixture(scope="module")
def by_two_ranks(model, tmp_path_factory):
    """The directory of what two ranks made of every case."""
    directory = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [*launcher, "-m", "tests.support.five_steps", model, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_START_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_and_one_lead_to_the_same_weights(by_one_rank, others_by_one_rank, by_two_ranks, case):
    weights = torch.load(by_two_ranks / f"{case}.pt")
    by_one = others_by_one_rank.get(case.split(",")[0], by_one_rank)
    assert weights.keys() == by_one.keys()
    for name, expected in by_one.items():
        torch.testing.assert_close(weights[name], expected.cpu(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("other", ["ppo", "pulled"])
def test_what_else_is_asked_for_leads_somewhere_else(by_one_rank, others_by_one_rank, other):
    gaps = [(by_one_rank[name] - tensor).abs().max() for name, tensor in others_by_one_rank[other].items()]
    assert max(float(gap) for gap in gaps) > 1e-3


@pytest.mark.parametrize("case", ["stage-3", "a pass for each sample", "activations computed again"])
def test_one_rank_leads_to_the_same_weights_whatever_saves_memory(model, by_one_rank, case):
    for name, tensor in five_steps(model, shared_ranks(), **CASES[case]).state_dict().items():
        torch.testing.assert_close(tensor.cpu(), by_one_rank[name].cpu(), atol=1e-5, rtol=0)


def test_five_steps_move_the_weights_far_beyond_the_tolerance(model, by_one_rank):
    from trainers.policy import Policy, load_model

    before = Policy(load_model(model, torch.float32), 1.0).weights()
    assert max(float((by_one_rank[name].cpu() - before[name]).abs().max()) for name in before) > 1e-3


@pytest.mark.parametrize("stage", [0, 2])
def test_one_rank_goes_on_from_what_two_have_saved(model, by_two_ranks, stage):
    never_saved = five_steps(model, shared_ranks())
    resumed = make_engine(model, shared_ranks(), saved=by_two_ranks, zero_stage=stage)
    for step in (STEPS, STEPS + 1):
        losses = [take_step(engine, shared_ranks(), step).loss for engine in (never_saved, resumed)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    weights = resumed.state_dict()
    for name, tensor in never_saved.state_dict().items():
        torch.testing.assert_close(weights[name].cpu(), tensor.cpu(), atol=1e-5, rtol=0)
