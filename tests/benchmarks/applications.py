"""Applications of live feedback on a whole local stack: how much better does a model do what its users correct?

    stack (broker, worker, pipelines, learner) ──first version──► held-out score before
        ◄── prompts of a task, as fast as they are trained; simulated users who know the right answers judge what comes
    ──newest version, once all judgements are trained──► held-out score after
    the same with judgements meant for other prompts ──► hardly anything may be gained

    make -s bench BENCH=applications BENCH_ARGS="--data DIR --answers 4000 --seeds 0"
    python -m tests.benchmarks.applications --data DIR --over docs/benchmarks/gpu/applications.toml --out DIR

Prints one JSON object, with code 1 if a figure misses its bar. Scores are those of greedy answers to the same held-out
prompts: chrF for ``translation``. The configuration of a kind is its application's in ``docs/examples/``. A fast engine
would answer all prompts by the first version while people think, so prompts come as people would bring them: as long as
few of them are answered and not yet trained (``--ahead``).
"""

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.cli.logs import configure_logging
from pipelines.evaluation.announcements import read_results
from pipelines.evaluation.follow import Evaluator
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.prompts import HeldOut
from pipelines.local.demo_model import demo_model
from pipelines.local.stack import Stack
from pipelines.log import RunReader, TopicReader, read_topic
from pipelines.simulation.population import Habits, populate
from pipelines.simulation.rating import Rating
from pipelines.simulation.translators import Translators, right_text
from pipelines.submit import submit
from pipelines.tasks.draw import draw, judged_by_people
from pipelines.tasks.registry import find
from schemas.config import RunConfig, validate
from schemas.ledger import decode_entry, surviving_steps
from schemas.outcomes import Outcome
from tests.benchmarks import settings
from tests.benchmarks.gpu import keep
from tests.benchmarks.live import look
from tests.benchmarks.stack import ROOT, begin
from tests.benchmarks.turns import add_option, wait_for_turn
from tests.pipeline.rollout_process import wait_for
from tests.support.samples import SAMPLE
from transforms.rewards.scoring import score_samples

EXAMPLES = ROOT / "docs" / "examples"
QUIET_S = 120.0
"""Longer than a step takes on two cores that others use, too."""
OF_CONTROL = 1 / 3
"""Of what is gained, at most this by judgements that were meant for other prompts."""


@dataclass(frozen=True)
class Kind:
    """One application."""

    task: str
    config: Path
    drive: Callable
    """``(options, stack, task, seed, shuffled)``: has answers judged, returns figures with ``judgements``, by kind."""
    gain: float
    """Of the held-out score, at least."""
    args: tuple = ()
    """What the task is told, unless ``--args`` says."""


def main():
    options = parse()
    configure_logging()  # what the stack tells goes to standard error
    begin(options.out)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print as they like
        figures = {name: measure(options, name, KINDS[name]) for name in options.kinds}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if all(each["passed"] for each in figures.values()) else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--data", type=Path, required=True, help="directory that holds the data sets")
    parser.add_argument("--args", nargs="*", metavar="KEY=VALUE", help="what the task of the one kind is told")
    parser.add_argument("--model", type=Path, help="by default SmolLM2-135M-Instruct")
    parser.add_argument("--answers", type=int, default=4000, help="that users see")
    parser.add_argument("--held-out", type=int, default=200, help="prompts")
    parser.add_argument("--every", type=int, default=50, help="versions between held-out scores; 0 for none")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--controls", type=int, nargs="*", default=[0], help="seeds of runs with shuffled judgements")
    parser.add_argument("--raters", type=int, default=64)
    parser.add_argument("--threshold", type=float, default=0.6, help="score that gets a thumb up, not a correction")
    parser.add_argument("--delay-s", type=float, default=1.0, help="mean time from an answer to its judgement")
    parser.add_argument("--feedback-share", type=float, default=0.5, help="of the reward that the function remains")
    parser.add_argument("--ahead", type=int, default=128, help="prompts that may be asked and not yet trained")
    parser.add_argument("--window", type=int, default=128, help="answers over which their mean score is taken")
    parser.add_argument("--patience-s", type=float, default=600.0, help="for an answer, and for the last step")
    add_option(parser)
    parser.add_argument("--over", type=Path, help="TOML laid over the configuration, such as that for a GPU")
    settings.add_option(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/applications"), help="where each run's figures go")
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default they are not")
    options = parser.parse_args()
    if options.args is not None and len(options.kinds) > 1:
        parser.error("--args is for one kind: name it with --kinds")
    return options


def measure(options, name, kind):
    """All runs of one application, and whether they reach the bar."""
    runs = [one(options, name, kind, seed, shuffled=False) for seed in options.seeds]
    controls = [one(options, name, kind, seed, shuffled=True) for seed in options.controls]
    return {"runs": runs, "controls": controls, **judge(kind.gain, runs, controls)}


def judge(least, runs, controls):
    """The mean gains, and whether they are as they should be, at least so much; without a run there is none."""
    gain, by_chance = (statistics.fmean(run["gain"] for run in each) if each else None for each in (runs, controls))
    sound = all(run["audit"]["ok"] for run in (*runs, *controls))
    gained = gain is not None and gain >= least
    passed = sound and gained and (by_chance is None or by_chance < OF_CONTROL * gain)
    bar = f">= {least}, of which shuffled judgements give less than {OF_CONTROL:.2f}"
    return {"gain": gain, "gain_shuffled": by_chance, "bar": bar, "passed": passed}


def one(options, name, kind, seed, *, shuffled):
    """One stack from its first version to the last; its figures are kept at once."""
    run = f"{name}-{seed}{'-shuffled' if shuffled else ''}"
    task = find(kind.task, kind.args if options.args is None else options.args)
    with serving(options, configure(options, kind, run, seed)) as stack:
        prompts = draw(task, options.data, "held_out", limit=options.held_out)  # the same for all seeds
        held_out = HeldOut(tuple(prompts))
        asked = Measure(stack.config, held_out)
        before = show(asked.of(1)[0])
        began_s = time.monotonic()
        with evaluating(stack.config, held_out, options.every):
            told = kind.drive(options, stack, task, seed, shuffled)
            version = trained(stack, sum(told["judgements"].values()), options.patience_s)
        seconds = time.monotonic() - began_s
        after = show(asked.of(version)[0])
        curve = [show(result) for result in read_results(stack.config)]
        seen = look(stack.config)
    gain = after["value"] - before["value"]
    figures = {"run": run, "before": before, "after": after, "gain": gain, "seconds": seconds, "curve": curve}
    figures |= {"unrelated": unrelated(task, options.data, prompts, seed), "seen": told, **seen}
    (options.out / f"{run}.json").write_text(json.dumps(figures, indent=1) + "\n")
    sys.stderr.write(json.dumps({"run": run, "before": before, "after": after}) + "\n")
    return figures


def unrelated(task, data, held_out, seed):
    """The mean score of right answers to other prompts, which is what the control can teach."""
    dice, others = random.Random(seed), list(task.prompts(data, "train"))
    texts = [right_text(dice.choice(others).reward) for _ in held_out]
    answers = [replace(SAMPLE, response_text=text) for text in texts]
    pairs = zip(held_out, answers, strict=True)
    return statistics.fmean(score_samples(prompt.reward, [answer])[0].value for prompt, answer in pairs)


@contextmanager
def serving(options, config):
    """The whole stack of a run; its configuration and logs are copied to ``--out``."""
    with tempfile.TemporaryDirectory(prefix="asyncflow-applications-") as made:
        runs = options.runs or Path(made)
        try:
            with Stack(config, runs=runs, restarts=3) as stack:
                stack.start_serving()
                stack.start_rollout()
                stack.start_feedback()
                if options.after:
                    wait_for_turn(options.after)
                yield stack
        finally:
            keep(runs / config.name, options.out / config.name)
            if Path(config.weights.root).is_absolute():  # else it is below the run
                shutil.rmtree(config.weights.root, ignore_errors=True)


@contextmanager
def evaluating(config, held_out, every):
    """Follows the run as ``asyncflow evaluate`` does, in a thread, every so many versions; 0 for never."""
    given = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"every": every})})
    ended = threading.Event()

    def follow():
        with ExitStack() as opened:
            evaluator = Evaluator(given, held_out, opened)
            while not ended.wait(0.5):
                evaluator.advance()

    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(follow) if every else None
        try:
            yield
        finally:
            ended.set()
        if following:
            following.result()


def show(result):
    """What matters of a held-out result."""
    return {name: getattr(result, name) for name in ("value", "standard_error", "samples", "version", "version_max")}


def configure(options, kind, name, seed):
    """The application's configuration with the model, and what is laid over it."""
    tree = tomllib.loads(kind.config.read_text())
    if options.over:
        for section, values in tomllib.loads(options.over.read_text()).items():
            tree[section] = {**tree.get(section, {}), **values}
    if "weights" in tree:
        tree["weights"]["root"] += f"/{name}"
    tree |= {"name": name, "seed": seed}
    tree.setdefault("model", {})["path"] = str(options.model or demo_model())
    return validate(settings.put(tree, options.set), "of the benchmark")


def rate(options, stack, task, seed, shuffled):
    """Users who follow what is answered to the task's prompts, over Kafka, and correct it."""
    everything = list(task.prompts(options.data, "train"))
    users = populate(options.raters, Habits(delay_s=options.delay_s, shuffled=shuffled), seed)
    raters = Translators(everything, users, options.threshold, seed)
    asked = draw(task, options.data, "train", limit=options.answers, seed=seed)
    rating = Rating(stack.config, raters, len(asked), options.patience_s, options.window)
    with closing(TopicReader(stack.config.kafka, stack.config.topics.ledger)) as ledger:
        feed = Feed(stack.config, judged_by_people(asked, options.feedback_share), rating, ledger, options.ahead)
        return rating.run(lambda: stack.supervisor.tick() or feed.look())


@dataclass
class Feed:
    """Submits prompts as long as few of those that are judged are not yet trained."""

    config: RunConfig
    prompts: list
    rating: Rating
    ledger: TopicReader
    ahead: int
    submitted: int = 0
    entries: list = field(default_factory=list)
    looked_s: float = 0.0

    def look(self):
        """Submits what there is room for, at most once a second."""
        if self.submitted == len(self.prompts) or time.monotonic() < self.looked_s + 1:
            return
        self.looked_s = time.monotonic()
        self.entries += [decode_entry(record.value) for record in self.ledger.read_on()]
        line = surviving_steps(self.entries)
        ended = sum(part.group.is_prompt for step in line for part in (*step.trained, *step.dropped))
        room = self.ahead + ended + self.rating.silent - self.submitted
        if room > 0:
            now = self.prompts[self.submitted : self.submitted + room]
            self.submitted += submit(self.config, [prompt.encode() for prompt in now])


def trained(stack, judgements, patience_s):
    """Waits until all that came of so many judgements is trained, but what does not fill a step.

    What the learner has dropped since its last step is told by its next one, which need not come: so it is over as
    well once no step has come for a while.

    Returns:
        The version of the last step.
    """
    heard = Heard()
    with RunReader(stack.config.kafka, stack.config.name) as reader:

        def done():
            stack.supervisor.tick()
            outcomes = read_topic(stack.config.kafka, stack.config.topics.outcomes, Outcome.decode)
            line = surviving_steps(reader.advance().ledger)
            contributed = {group for outcome in outcomes for group in outcome.contributions}
            ended = {part.group for step in line for part in (*step.trained, *step.dropped)}
            few = len(contributed - ended) < stack.config.learner.groups_per_step
            told = sum(len(outcome.feedback) for outcome in outcomes)
            return (heard.quiet_s(len(line)) > QUIET_S or few) and told >= judgements and line

        return wait_for(done, patience_s, poll_s=1.0)[-1].version


@dataclass
class Heard:
    """How long nothing new has come."""

    number: int = 0
    at_s: float = field(default_factory=time.monotonic)

    def quiet_s(self, number):
        if number != self.number:
            self.number, self.at_s = number, time.monotonic()
        return time.monotonic() - self.at_s


KINDS = {"translation": Kind("translation", EXAMPLES / "translation.toml", rate, gain=0.03, args=("to=fr",))}
"""A further application is a place here; ``rate`` drives any task whose reward knows the right text."""


if __name__ == "__main__":
    raise SystemExit(main())
