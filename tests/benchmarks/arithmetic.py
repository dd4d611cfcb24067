"""Problems of arithmetic on two cores: does a small model get better at held-out ones, by right rewards alone?

    stack (broker, worker, pipeline, learner) ──first version──► held-out accuracy before
        ◄── problems, as fast as they are trained, rewarded where the answer is right
    ──newest version──► held-out accuracy after
    the same, rewarded by chance or for the answer to another problem ──► nothing may be learned of what is right

    make -s bench BENCH=arithmetic BENCH_ARGS="--seeds 0 --controls 0"
    make -s bench BENCH=arithmetic BENCH_ARGS="--data DIR --task mawps --control other"

Prints one JSON object, with code 1 if a figure misses its bar: the accuracy of greedy answers to the same held-out
problems rises by ``GAIN``, in the control by less than a third of that, and the audits are clean. The configuration is
``docs/benchmarks/arithmetic.toml``, the model SmolLM2-135M-Instruct, the task countdown with two numbers
(``tests/benchmarks/pairs.py``) or one of ``pipelines/tasks``.

Runs that are complete in ``--out`` are not done again: after a break, or one by one, the same command goes on; other
settings want another directory.

Of countdown a reader wants to know what one rule for all puzzles gets: ``always_the_sum`` is the share of held-out ones
that adding up all numbers solves.
"""

import argparse
import json
import os
import random
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

from pipelines.cli.logs import configure_logging
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.prompts import HeldOut
from pipelines.tasks.draw import draw
from pipelines.tasks.registry import find
from schemas.prompts import RewardSpec
from tests.benchmarks import settings
from tests.benchmarks.applications import evaluating, judge, show
from tests.benchmarks.glue import Sheet, Training, configure, endless, serving
from tests.benchmarks.pairs import Pairs
from tests.benchmarks.stack import ROOT, begin

CONFIG = ROOT / "docs" / "benchmarks" / "arithmetic.toml"
GAIN = 0.2
"""Of held-out accuracy, at least."""
CHANCE = 0.25
"""Of the answers that the control by chance calls right: so many that most groups have a variance."""
STAGES = {"engine": "asyncflow_rollout_generation", "scoring": "asyncflow_score", "writing": "asyncflow_write_commit"}
"""Histograms of the rollout pipeline, by what they time (docs/generation.md)."""


def main():
    options = parse()
    configure_logging()  # what the stack tells goes to standard error
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns on the standard output
    begin(options.out)
    runs = [known_or_run(options, seed, shuffled=False) for seed in options.seeds]
    controls = [known_or_run(options, seed, shuffled=True) for seed in options.controls]
    figures = {"runs": runs, "controls": controls, **judge(GAIN, runs, controls)}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"),
                        help="directory that holds the data sets; pairs need none")  # fmt: skip
    parser.add_argument("--task", default=Pairs.name)
    parser.add_argument("--args", nargs="*", default=[], metavar="KEY=VALUE", help="what the task is told")
    parser.add_argument("--model", help='a directory, or "tiny"; by default SmolLM2-135M-Instruct')
    parser.add_argument("--config", type=Path, default=CONFIG, help="TOML; of the run")
    settings.add_option(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--controls", type=int, nargs="*", default=[0], help="seeds of runs with shuffled rewards")
    parser.add_argument("--control", choices=CONTROLS, default="chance", help="where those rewards come from")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=1500.0, help="after which training ends")
    parser.add_argument("--held-out", type=int, default=200, help="problems")
    parser.add_argument("--every", type=int, default=20, help="versions between held-out figures; 0 for none")
    parser.add_argument("--ahead", type=int, default=48, help="problems written and not yet trained or dropped")
    parser.add_argument("--out", type=Path, default=Path("runs/arithmetic"), help="where figures and logs go")
    return parser.parse_args()


def known_or_run(options, seed, *, shuffled):
    """The figures of a run that is complete in ``--out``, else of a new one."""
    name = f"arithmetic-{seed}{'-shuffled' if shuffled else ''}"
    sheet = Sheet(options.out / f"{name}.json")
    if sheet.file.exists() and "seconds" in (figures := json.loads(sheet.file.read_text())):
        return figures
    return one(options, name, sheet, seed, shuffled=shuffled)


def one(options, name, sheet, seed, *, shuffled):
    """One stack from its first version to the last; its figures are kept as soon as they are known."""
    began_s = time.monotonic()
    task = Pairs() if options.task == Pairs.name else find(options.task, options.args)
    held_out = HeldOut(tuple(draw(task, options.data, "held_out", limit=options.held_out)))  # the same for all seeds
    sheet.put(run=name, task=task.label, control=options.control if shuffled else None, **rules(held_out.prompts))
    with serving(options, configure(options, name, seed)) as stack:
        asked = Measure(stack.config, held_out)
        sheet.put(before=show(asked.of(1)[0]))
        problems = list(task.prompts(options.data, "train"))
        prompts = endless(CONTROLS[options.control](problems, seed) if shuffled else problems, seed, evenly=False)
        with closing(Training(options, stack, prompts)) as training:
            with evaluating(stack.config, held_out, options.every):
                training.run(sheet)
            sheet.put(training=training.told(), after=show(asked.of(training.version)[0]), audit=training.audit())
            sheet.put(stages=stages(stack.config.rollout.metrics_port))
    gain = sheet.figures["after"]["value"] - sheet.figures["before"]["value"]
    sheet.put(gain=gain, seconds=time.monotonic() - began_s)
    return sheet.figures


def rules(prompts):
    """What one rule for all held-out puzzles gets; nothing of other tasks."""
    puzzles = [prompt.reward.args for prompt in prompts if prompt.reward.name == "countdown"]
    if not puzzles:
        return {}
    return {"always_the_sum": sum(sum(each["numbers"]) == each["target"] for each in puzzles) / len(puzzles)}


# ---- controls -----------------------------------------------------------------------------------------


def of_another(prompts, seed):
    """The same prompts, each with the reward of another one; how often an answer is right stays as it is."""
    rewards = [prompt.reward for prompt in prompts]
    random.Random(seed).shuffle(rewards)
    return [prompt.model_copy(update={"reward": reward}) for prompt, reward in zip(prompts, rewards, strict=True)]


def by_chance(prompts, _seed):
    """The same prompts, whose answers are right by chance: for tasks where the answer to another one never is."""
    reward = RewardSpec(name="by_chance", args={"share": CHANCE})
    return [prompt.model_copy(update={"reward": reward}) for prompt in prompts]


CONTROLS = {"chance": by_chance, "other": of_another}


# ---- where the time went ------------------------------------------------------------------------------


def stages(port):
    """Seconds of the stages of the rollout pipeline, read from its metrics."""
    return timed(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode())


def timed(text):
    """Of each stage how often and how long in all; and scoring as a share of the engine's time for the same groups."""
    found = {name: {each: number(text, f"{metric}_seconds_{each}") for each in ("count", "sum")}
             for name, metric in STAGES.items()}  # fmt: skip
    engine_s = found["engine"]["sum"]
    return {**found, "scoring_share": found["scoring"]["sum"] / engine_s if engine_s else None}


def number(text, name):
    """All numbers of that name, whatever their labels, added up."""
    return sum(float(each) for each in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.M))


if __name__ == "__main__":
    raise SystemExit(main())
