"""Five optimizer steps under many settings, on as many ranks as a launcher starts; rank 0 saves what they lead to.

torchrun --nproc-per-node=2 -m tests.support.five_steps MODEL DIRECTORY ──► DIRECTORY/{case}.pt, DIRECTORY/state/
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from schemas.config import validate
from tests.support.samples import draw_examples, draw_groups
from trainers.aggregation import weigh
from trainers.engine import Engine, Work
from trainers.packing import share_out, share_out_together
from trainers.policy_gradient import PolicyGradient
from trainers.ranks import Ranks
from trainers.scorers import RewardModel

STEPS = 5
ALL_IN_ONE_PACK = 4096
SAVED = "stage-3"
"""The case whose state is saved too."""
PPO = {"objective": {"name": "ppo", "kl_coefficient": 0.1, "kl_place": "reward"}, "minibatches": 2}
"""A value head, a pass without gradients before the updates, and several of them."""
REWARD = "reward model"
"""What is trained in the cases of this name, instead of a policy."""
PULLED = {"pull": 5.0}
"""Towards the model of the beginning, as a federation's site is towards a global version."""
ADAPTER = {"lora": {"rank": 4, "alpha": 8}}
CASES = {
    **{f"stage-{stage}": {"zero_stage": stage, "micro_batch_tokens": 64} for stage in range(4)},
    "one pack a rank": {"micro_batch_tokens": ALL_IN_ONE_PACK},
    "a pass for each sample": {"micro_batch_tokens": 1},
    "stage 3, one pack a rank": {"zero_stage": 3, "micro_batch_tokens": ALL_IN_ONE_PACK},
    "activations computed again": {"activation_checkpointing": True, "micro_batch_tokens": 64},
    "stage 3, activations computed again": {"zero_stage": 3, "activation_checkpointing": True},
    "adapter": {**ADAPTER, "micro_batch_tokens": 64},
    "adapter, stage 3, activations computed again": {**ADAPTER, "zero_stage": 3, "activation_checkpointing": True},
    "ppo": {**PPO, "micro_batch_tokens": 64},
    "ppo, stage 2, a pass for each sample": {**PPO, "zero_stage": 2, "micro_batch_tokens": 1},
    "ppo, stage 3, activations computed again": {**PPO, "zero_stage": 3, "activation_checkpointing": True},
    REWARD: {"micro_batch_tokens": 64},
    f"{REWARD}, stage 3": {"zero_stage": 3, "micro_batch_tokens": 64},
    **{f"pulled, stage {stage}": {**PULLED, "zero_stage": stage} for stage in range(3)},
}


def five_steps(model, ranks, make=PolicyGradient, **learner):
    """The engine after five steps over the same examples."""
    engine = make_engine(model, ranks, make=make, **learner)
    for step in range(STEPS):
        take_step(engine, ranks, step)
    return engine


def make_engine(model, ranks, saved=None, make=PolicyGradient, pull=0.0, **learner):
    """On this rank."""
    site = {"name": "f", "site": "north", "store": "nowhere", "proximal_mu": pull} if pull else {}
    tree = {"model": {"path": model, "dtype": "float32"}, "learner": learner, "federation": site}
    engine = Engine(validate(tree, "test"), "float32", ranks, saved, make)
    if pull:
        engine.adopt(Path(model), forget=True)
    return engine


def take_step(engine, ranks, step):
    """One step over examples of its own; every rank takes its share."""
    most_tokens = engine._config.micro_batch_tokens
    if isinstance(engine._trained, RewardModel):
        groups = [[replace(one, weight=1 / 6) for one in group] for group in draw_groups(6, seed=step)]
        shares = [share_out_together(groups, ranks.size, most_tokens)]
    else:
        examples, parts = draw_examples(23, seed=step), engine._config.minibatches
        minibatches = [weigh(examples[first::parts], "token_mean", 1) for first in range(parts)]
        shares = [share_out(each, ranks.size, most_tokens) for each in minibatches]
    outcome = engine.train(Work([each[ranks.rank] for each in shares], 1e-3))
    assert outcome.applied
    return outcome


def main(model, directory):
    ranks = Ranks()
    for case, learner in CASES.items():
        engine = five_steps(model, ranks, RewardModel if REWARD in case else PolicyGradient, **learner)
        weights = engine.state_dict()
        if case == SAVED:
            engine.save(Path(directory))
        if ranks.leads:
            torch.save({name: tensor.cpu() for name, tensor in weights.items()}, Path(directory, f"{case}.pt"))
        ranks.barrier()
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
