"""Customer support on a whole local stack: do the agents' thumbs and corrections teach the desk and the policy?

    stack (broker, worker, pipelines, learner, gateway) ◄──HTTP── simulated agents with messages of the training split
        ──► share of answers that agents like, over time
    held-out messages, answered greedily by the first weights and by the last ──► share that is right: desk and policy
    the same with thumbs by chance and corrections of other messages ──► nothing may be learned of what is right

    make -s bench BENCH=support BENCH_ARGS="--data DIR --answers 4000 --seeds 0"
    python -m tests.benchmarks.support --data DIR --over docs/benchmarks/gpu/applications.toml --out DIR

Prints one JSON object, with code 1 if a figure misses its bar. The configuration is ``docs/examples/support.toml``, the
model SmolLM2-135M-Instruct unless another one is given.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from statistics import fmean

from pipelines.cli.logs import configure_logging
from pipelines.evaluation.announcements import Announcements
from pipelines.evaluation.ask import Asker
from pipelines.simulation.population import Habits
from pipelines.simulation.run import Simulation, simulate
from pipelines.simulation.support import keeps_policy, open_support
from pipelines.tasks.draw import draw
from pipelines.tasks.support import Support
from tests.benchmarks import settings
from tests.benchmarks.applications import EXAMPLES, Kind, configure, serving, trained
from tests.benchmarks.live import look
from tests.benchmarks.stack import begin
from tests.benchmarks.turns import add_option
from transforms.generation.tokenizer import Tokenizer

GAINED = 0.3
"""Of the share of held-out answers that are right, at least."""
LEARNED_BY_CHANCE = 1 / 3
"""Of what the run of the same seed gained, at most."""


def main():
    options = parse()
    configure_logging()  # what the stack tells goes to standard error
    begin(options.out)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print as they like
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
    parser.add_argument("--patience-s", type=float, default=600.0, help="for the last step")
    add_option(parser)
    parser.add_argument("--over", type=Path, help="TOML laid over the configuration, such as that for a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/support"), help="where each run's figures go")
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default they are not")
    settings.add_option(parser)
    options = parser.parse_args()
    if not set(options.controls) <= set(options.seeds):
        parser.error("--controls are compared with the runs of their seeds; name these in --seeds")
    return options


def support(options, seed, shuffled):
    """The figures of one stack and one population; they are kept in ``--out`` at once.

    Args:
        options: of :func:`parse`.
        seed: of population and run.
        shuffled: whether it is the control.
    """
    run = f"support-{seed}{'-shuffled' if shuffled else ''}"
    held_out = draw(Support(), options.data, "held_out", limit=options.held_out)  # the same for all seeds
    with serving(options, configure(options, KIND, run, seed)) as stack:
        examination = Examination(stack.config, held_out)
        before = examination.of(examination.newest())
        told = KIND.drive(options, stack, Support(), seed, shuffled)
        after = examination.of(trained(stack, told["judgements"], options.patience_s))
        seen = look(stack.config)
    figures = {"run": run, "before": before, "after": after, "gain": after["right"] - before["right"], "told": told}
    figures |= {"held_out": len(held_out), **seen}
    (options.out / f"{run}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def talk(options, stack, task, seed, shuffled):
    """Agents who talk to a gateway of the stack."""
    stack.start_gateway()
    gateway = stack.config.gateway
    return simulate(
        Simulation(
            gateway=f"http://{gateway.host}:{gateway.port}",
            application=open_support(options.data),
            users=options.users,
            answers=options.answers,
            habits=Habits(delay_s=options.delay_s, shuffled=shuffled, corrections=options.corrections),
            seed=seed,
            window=options.window,
            max_tokens=options.max_tokens,
        )
    )


class Examination:
    """What weights answer to messages that are never trained."""

    def __init__(self, config, prompts):
        self._config = config
        self._asker = Asker(config, prompts, Tokenizer.load(config.model.path))

    def of(self, version):
        """Share of the greedy answers by a version that are right, and in which way; one that did not come is wrong."""
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


def judge(runs, controls):
    """Whether every run gains enough, and no control more than a third of what the run of its seed gained."""
    sound = all(each["audit"]["ok"] for each in (*runs.values(), *controls.values()))
    gained = bool(runs) and all(run["gain"] >= GAINED for run in runs.values())
    by_chance = [control["gain"] / runs[seed]["gain"] for seed, control in controls.items()] if gained else []
    return sound and gained and all(share <= LEARNED_BY_CHANCE for share in by_chance)


KIND = Kind("support", EXAMPLES / "support.toml", talk, gain=GAINED)
"""What it has in common with the other applications."""


if __name__ == "__main__":
    raise SystemExit(main())
