"""Five optimizer steps under many settings, on as many ranks as a launcher starts; rank 0 saves what they lead to.

torchrun --nproc-per-node=2 -m tests.support.five_steps MODEL DIRECTORY ──► DIRECTORY/{ranks}-{case}.pt
"""

import sys
from pathlib import Path

import torch

from schemas.config import validate
from tests.support.samples import draw_examples
from trainers.batch import weigh
from trainers.engine import Engine, Work
from trainers.packing import share_out
from trainers.ranks import Ranks

STEPS = 5
ALL_IN_ONE_PACK = 4096
CASES = {
    **{f"stage-{stage}": {"zero_stage": stage, "micro_batch_tokens": 64} for stage in range(4)},
    "one pack a rank": {"micro_batch_tokens": ALL_IN_ONE_PACK},
    "a pass for each sample": {"micro_batch_tokens": 1},
    "stage 3, one pack a rank": {"zero_stage": 3, "micro_batch_tokens": ALL_IN_ONE_PACK},
    "activations computed again": {"activation_checkpointing": True, "micro_batch_tokens": 64},
    "stage 3, activations computed again": {"zero_stage": 3, "activation_checkpointing": True},
}


def five_steps(model, ranks, **learner):
    """The weights after five steps over the same examples, on rank 0."""
    config = validate({"model": {"path": model, "dtype": "float32"}, "learner": learner}, "test")
    engine = Engine(config, "float32", ranks)
    for step in range(STEPS):
        examples = weigh(draw_examples(23, seed=step))
        shares = share_out(examples, ranks.size, config.learner.micro_batch_tokens)
        assert engine.train(Work(shares[ranks.rank], 1e-3)).applied
    return engine.state_dict()


def main(model, directory):
    ranks = Ranks()
    for case, learner in CASES.items():
        weights = five_steps(model, ranks, **learner)
        if ranks.leads:
            torch.save({name: tensor.cpu() for name, tensor in weights.items()}, Path(directory, f"{case}.pt"))
        ranks.barrier()
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
