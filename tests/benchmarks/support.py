"""Customer support on a whole local stack: do the agents' thumbs and corrections teach the desk and the policy?

    stack (broker, worker, pipelines, learner, gateway) ◄──HTTP── simulated agents with messages of the training split
        ──► share of answers that agents like, over time
    held-out messages, answered greedily by the first weights and by the last ──► share that is right: desk and policy
    the same with thumbs by chance and corrections of other messages ──► nothing may be learned of what is right

    make -s bench BENCH=support BENCH_ARGS="--data DIR --answers 4000 --seeds 0"

Prints one JSON object, with code 1 if a figure misses its bar. The configuration is ``docs/examples/support.toml``, the
model SmolLM2-135M-Instruct unless another one is given.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

from pipelines.audit import audit
from pipelines.cli.logs import configure_logging
from pipelines.evaluation.announcements import Announcements
from pipelines.evaluation.ask import Asker
from pipelines.local.demo_model import demo_model
from pipelines.local.stack import Stack
from pipelines.log import RunReader
from pipelines.simulation.population import Habits
from pipelines.simulation.run import Simulation, simulate
from pipelines.simulation.support import keeps_policy, open_support
from pipelines.tasks.draw import draw
from pipelines.tasks.support import Support
from schemas.config import load, validate
from tests.benchmarks import settings
from tests.benchmarks.stack import ROOT
from transforms.generation.tokenizer import Tokenizer

CONFIG = ROOT / "docs" / "examples" / "support.toml"
GAINED = 0.3
"""Of the share of held-out answers that are right."""
LEARNED_BY_CHANCE = 1 / 3
"""Of what the run of the same seed gained."""
QUIET_S = 30.0
"""The learner has come to the end of what the agents said once it announces nothing for so long."""


def main():
    options = parse()
    configure_logging()  # standard output is for the figures
    runs = {seed: support(options, seed, shuffled=False) for seed in options.seeds}
    controls = {seed: support(options, seed, shuffled=True) for seed in options.controls}
    figures = {"runs": list(runs.values()), "controls": list(controls.values()), "passed": judge(runs, controls)}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory that holds bitext/")
    parser.add_argument("--model", type=Path, help="by default SmolLM2-135M-Instruct")
    parser.add_argument("--answers", type=int, default=4000, help="of all agents")
    parser.add_argument("--users", type=int, default=48)
    parser.add_argument("--delay-s", type=float, default=0.5, help="mean time from an answer to its judgement")
    parser.add_argument("--corrections", type=float, default=0.5, help="share of thumbs down that are followed by one")
    parser.add_argument("--window", type=int, default=128, help="answers over which the share of liked ones is taken")
    parser.add_argument("--held-out", type=int, default=200, help="messages that are never trained")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--controls", type=int, nargs="*", default=[0], help="seeds of runs that may learn nothing")
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default they are not")
    settings.add_option(parser)
    options = parser.parse_args()
    if not set(options.controls) <= set(options.seeds):
        parser.error("--controls are compared with the runs of their seeds; name these in --seeds")
    return options


def support(options, seed, shuffled):
    """The figures of one stack and one population.

    Args:
        options: of :func:`parse`; another benchmark gives its own with the same names.
        seed: of population and run.
        shuffled: whether it is the control.
    """
    held_out = draw(Support(), options.data, "held_out", limit=options.held_out)
    with tempfile.TemporaryDirectory(prefix="asyncflow-support-") as made:
        config = configure(options, f"support-{seed}{'-chance' if shuffled else ''}", seed)
        with Stack(config, runs=options.runs or Path(made), restarts=3) as stack:
            stack.start_serving()
            stack.start_rollout()
            stack.start_feedback()
            stack.start_gateway()
            examine = Examination(stack.config, held_out)
            before = examine.now()
            talked = simulate(simulation(options, stack.config.gateway, seed, shuffled=shuffled))
            examine.wait_until_quiet()
            after = examine.now()
            figures = {"before": before, "after": after, "gain": after["right"] - before["right"]}
            return {**figures, "held_out": len(held_out), "audit": verdict(stack.config), "simulation": talked}


def configure(options, name, seed):
    """The page's configuration with the model filled in."""
    tree = load(CONFIG).model_dump(mode="json")
    tree |= {"name": name, "seed": seed, "model": {"path": str(options.model or demo_model())}}
    settings.put(tree, options.set)
    return validate(tree, "of the benchmark")


def simulation(options, gateway, seed, *, shuffled):
    return Simulation(
        gateway=f"http://{gateway.host}:{gateway.port}",
        application=open_support(options.data),
        users=options.users,
        answers=options.answers,
        habits=Habits(delay_s=options.delay_s, shuffled=shuffled, corrections=options.corrections),
        seed=seed,
        window=options.window,
        max_tokens=options.max_tokens,
    )


class Examination:
    """What the newest weights answer to messages that are never trained."""

    def __init__(self, config, prompts):
        self._config, self._prompts = config, prompts
        self._asker = Asker(config, prompts, Tokenizer.load(config.model.path))

    def now(self):
        """Share of the greedy answers that are right, and in which way; one that did not come is wrong."""
        version = self.newest()
        answers = self._asker.greedy(version)
        intent = [each.rewards == (1.0,) for each in answers]
        policy = [any(map(keeps_policy, each.texts)) for each in answers]
        return {
            "right": fmean(map(all, zip(intent, policy, strict=True))),
            "intent": fmean(intent),
            "policy": fmean(policy),
            "unanswered": sum(not each.texts for each in answers),
            "version": version,
            "said": [each.texts[0] for each in answers[:8] if each.texts],
        }

    def newest(self):
        """The newest version that a learner has announced."""
        with Announcements(self._config) as announcements:
            announcements.read_on()
            return announcements.newest.version

    def wait_until_quiet(self):
        """Returns once the learner has come to the end of what there is to train."""
        newest, since_s = self.newest(), time.monotonic()
        while time.monotonic() < since_s + QUIET_S:
            time.sleep(1)
            if (version := self.newest()) != newest:
                newest, since_s = version, time.monotonic()


def verdict(config):
    """What the run's topics say: whether anything was lost, or trained twice."""
    with RunReader(config.kafka, config.name) as reader:
        found = audit(config.name, reader.advance())
    return {"ok": found.ok, "faults": found.faults, "steps": found.steps, "trained": found.trained}


def judge(runs, controls):
    """Whether every run gains enough, and no control more than a third of what the run of its seed gained."""
    gained = all(run["gain"] >= GAINED and run["audit"]["ok"] for run in runs.values())
    return gained and all(
        control["gain"] <= LEARNED_BY_CHANCE * runs[seed]["gain"] for seed, control in controls.items()
    )


if __name__ == "__main__":
    raise SystemExit(main())
