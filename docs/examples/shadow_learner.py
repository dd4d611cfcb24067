"""A second learner in the shadow of the first: the same groups, step by step, under an objective of its own.

    ledger ──► which groups a step trained ──► read again from trajectories ──► Updates of this program ──► figures
                                                                                     └── at the end ──► weights

    python docs/examples/shadow_learner.py runs/demo --objective dr_grpo --out shadows/dr_grpo

It begins with the model that the run began with and follows the run while it goes on, until the run's learner has done
all its steps. The run does not notice: nothing here is a producer or a member of a consumer group, and weights and
figures go to --out. The answers are those of the run's policy, so the longer it goes on the more it is off policy;
--correction chooses what is done about that (docs/objectives.md).
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipelines.runs import find_config
from schemas.config import RunConfig, WeightsConfig, validate
from schemas.ledger import StepEntry, surviving_steps
from trainers.accounts import Accounts, Versions
from trainers.optimizer import learning_rate
from trainers.planner import Planner
from trainers.publish import WeightStore
from trainers.ranks import Ranks
from trainers.restart import read_history
from trainers.stream import Groups
from trainers.updates import Updates

PAUSE_S = 2.0


def follow(config: RunConfig) -> Iterator[StepEntry]:
    """The steps of a run, each once, as its ledger grows; a step that is done again has the same groups."""
    done = 0
    while done < config.learner.steps:
        new = [entry for entry in surviving_steps(read_history(config).entries) if entry.step > done]
        for entry in new:
            yield entry
            done = entry.step
        if not new:
            time.sleep(PAUSE_S)


def shadow(config: RunConfig, ranks: Ranks, out: Path) -> None:
    """Trains what the run trained, and writes a line of figures a step."""
    updates = Updates(config, config.model.dtype, ranks, None)
    planner = Planner(config.learner.groups_per_step, config.learner.max_staleness, Accounts(), Versions())
    out.mkdir(parents=True, exist_ok=True)
    with closing(Groups(config)) as groups, (out / "metrics.jsonl").open("w", buffering=1) as figures:
        for entry in follow(config):
            if entry.trained:
                plan = planner.again(entry, groups.fetch(entry))
                outcome = updates.train(plan, learning_rate(config.learner, entry.step - 1, config.learner.steps))
                told = {"step": entry.step, "loss": outcome.loss, "loss_of_the_run": entry.metrics.get("loss")}
                figures.write(json.dumps(told | outcome.figures) + "\n")
    with closing(WeightStore(WeightsConfig(root=str(out / "weights")))) as store:
        updates.write(store, entry.version, entry.step)


def with_objective(config: RunConfig, name: str, correction: str) -> RunConfig:
    """The run's configuration with another objective."""
    tree = config.model_dump(mode="json")
    tree["learner"]["objective"] = {"name": name, "correction": correction}
    return validate(tree, "of the shadow")


def main() -> None:
    """Runs it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="directory of the run; its log is served (asyncflow kafka serves a finished one)")
    parser.add_argument("--objective", default="dr_grpo")
    parser.add_argument("--correction", default="none")
    parser.add_argument("--bootstrap", help="brokers, where the configuration does not say it")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config, _ = find_config(given.run, given.bootstrap)
    ranks = Ranks()
    try:
        shadow(with_objective(config, given.objective, given.correction), ranks, given.out)
    finally:
        ranks.leave()


if __name__ == "__main__":
    main()
