"""Word problems on two cores: does a small model get better at held-out ones in half an hour, by right rewards alone?

    stack (broker, worker, pipeline, learner) ──first version──► held-out accuracy before
        ◄── problems, as fast as they are trained, rewarded for the right last number
    ──newest version──► held-out accuracy after
    the same with each problem rewarded for the answer to another one ──► nothing may be learned of what is right

    make -s bench BENCH=arithmetic BENCH_ARGS="--data DIR --seeds 0 --controls 0"

Prints one JSON object, with code 1 if a figure misses its bar. Accuracy is that of greedy answers to the same held-out
problems. The configuration is ``docs/benchmarks/arithmetic.toml``, the model SmolLM2-135M-Instruct.
"""

import argparse
import json
import os
import random
import sys
from contextlib import closing
from pathlib import Path

from pipelines.cli.logs import configure_logging
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.prompts import HeldOut
from pipelines.tasks.draw import draw
from pipelines.tasks.registry import find
from tests.benchmarks import settings
from tests.benchmarks.applications import evaluating, judge, show
from tests.benchmarks.glue import Sheet, Training, configure, endless, serving
from tests.benchmarks.stack import ROOT, begin

CONFIG = ROOT / "docs" / "benchmarks" / "arithmetic.toml"
GAIN = 0.2
"""Of held-out accuracy, at least."""


def main():
    options = parse()
    configure_logging()  # what the stack tells goes to standard error
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns on the standard output
    begin(options.out)
    runs = [one(options, seed, shuffled=False) for seed in options.seeds]
    controls = [one(options, seed, shuffled=True) for seed in options.controls]
    figures = {"runs": runs, "controls": controls, **judge(GAIN, runs, controls)}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory that holds the data sets")
    parser.add_argument("--task", default="mawps")
    parser.add_argument("--args", nargs="*", default=[], metavar="KEY=VALUE", help="what the task is told")
    parser.add_argument("--model", help='a directory, or "tiny"; by default SmolLM2-135M-Instruct')
    parser.add_argument("--config", type=Path, default=CONFIG, help="TOML; of the run")
    settings.add_option(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--controls", type=int, nargs="*", default=[0], help="seeds of runs with shuffled rewards")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=1500.0, help="after which training ends")
    parser.add_argument("--held-out", type=int, default=200, help="problems")
    parser.add_argument("--every", type=int, default=25, help="versions between held-out figures; 0 for none")
    parser.add_argument("--ahead", type=int, default=64, help="problems written and not yet trained or dropped")
    parser.add_argument("--out", type=Path, default=Path("runs/arithmetic"), help="where figures and logs go")
    return parser.parse_args()


def one(options, seed, *, shuffled):
    """One stack from its first version to the last; its figures are kept as soon as they are known."""
    name = f"arithmetic-{seed}{'-shuffled' if shuffled else ''}"
    task = find(options.task, options.args)
    sheet = Sheet(options.out / f"{name}.json")
    sheet.put(run=name, task=options.task)
    held_out = HeldOut(tuple(draw(task, options.data, "held_out", limit=options.held_out)))  # the same for all seeds
    with serving(options, configure(options, name, seed)) as stack:
        asked = Measure(stack.config, held_out)
        sheet.put(before=show(asked.of(1)[0]))
        problems = list(task.prompts(options.data, "train"))
        prompts = endless(mixed_up(problems, seed) if shuffled else problems, seed, evenly=False)
        with closing(Training(options, stack, prompts)) as training:
            with evaluating(stack.config, held_out, options.every):
                training.run(sheet)
            sheet.put(training=training.told(), after=show(asked.of(training.version)[0]), audit=training.audit())
    sheet.put(gain=sheet.figures["after"]["value"] - sheet.figures["before"]["value"])
    return sheet.figures


def mixed_up(prompts, seed):
    """The same prompts, each with the reward of another one; how often an answer is right stays as it is."""
    rewards = [prompt.reward for prompt in prompts]
    random.Random(seed).shuffle(rewards)
    return [prompt.model_copy(update={"reward": reward}) for prompt, reward in zip(prompts, rewards, strict=True)]


if __name__ == "__main__":
    raise SystemExit(main())
