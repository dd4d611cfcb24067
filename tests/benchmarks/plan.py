"""Planning: does ``asyncflow plan`` foretell what the real pipeline does with other numbers of engines and ranks?

    runs of 1 and 2 engines ──► calibration ──► predictions ─┐
    1, 2, 4, 8 engines, staleness 0 and 1, 1 and 2 ranks ────┴──► error of each run that was not used

    make -s bench BENCH=plan                            all, five minutes; code 1 if an error exceeds 15 %
    python -m tests.benchmarks.plan --steps-share 0.5   shorter runs
    python -m tests.benchmarks.plan --record            also to docs/results/plan.json and docs/planning.md

A real broker, the real pipeline on Prism; engines and learner are instruments that take time as real ones do, the
engines more of it the more they compute at once. Everything that is calibrated is read from the topics of the runs.
Prints one JSON object.
"""

import argparse
import contextlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.plan.calibration import changed
from pipelines.plan.measure import Run, calibrate
from pipelines.plan.observe import observe
from pipelines.plan.prediction import predict
from pipelines.plan.simulation import Shape
from schemas.config import LearnerConfig, WorkerConfig
from tests.benchmarks.stack import PARTITIONS, Bench, sums
from tests.support.simulated_learner import Pace, SimulatedLearner

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE = DOCS / "results/plan.json", DOCS / "planning.md"
BEGIN, END = "<!-- table: made by tests/benchmarks/plan.py -->\n", "<!-- end of table -->\n"
BAR = 0.15
GROUPS = 16
"""Of a step, of 4 samples."""
SLOTS = 16
ENGINE = {
    "fixed_tokens": 0,
    "mean_tokens": 50,
    "sigma": 0.8,
    "token_s": 0.02,
    "sequence_s": 0.0004,
    "slots": SLOTS,
    "obliging": 1,
}
"""A second an answer in the mean: two cores have little to do, and are not what is measured."""
LONGEST = 150
"""Tokens. Two answers of a step reach it in the mean: a longer tail would take longer runs to be measured."""
TRAIN = {"fixed_s": 0.1, "token_s": 3e-4, "publish_s": 0.1}
PREDICTED_STEPS = 200
RATES = ("samples_per_s", "tokens_per_s")
"""What a plan is asked for; the bar is on the larger error."""


@dataclass(frozen=True)
class Case:
    """One run."""

    engines: int
    max_staleness: int
    ranks: int
    steps: int
    calibrates: bool = False

    @property
    def shape(self):
        return Shape(self.engines, self.ranks, PARTITIONS)


CASES = (
    Case(1, 1, 1, 12, calibrates=True),
    Case(2, 0, 1, 12, calibrates=True),
    Case(1, 0, 1, 10),
    Case(2, 1, 1, 14),
    Case(4, 0, 1, 12),
    Case(4, 1, 1, 20),
    Case(8, 0, 1, 12),
    Case(8, 1, 1, 20),
    Case(8, 1, 2, 24),
)
_STARTING = threading.Lock()
"""A bench starts one run at a time."""


def measure(bench, case):
    """One run of the pipeline; what its log says."""
    engines = [{**ENGINE, "seed": number} for number in range(case.engines)]
    with contextlib.ExitStack() as opened:
        with _STARTING:
            run = opened.enter_context(bench.run(engines, group_size=4, sampling={"max_tokens": LONGEST}))
        learner = LearnerConfig(groups_per_step=GROUPS, max_staleness=case.max_staleness)
        config = run.config.model_copy(update={"learner": learner, "worker": WorkerConfig(max_num_seqs=SLOTS)})
        run.send(sums(2 * (case.steps + 2) * GROUPS))  # of which no more than half are dropped
        run.warm()
        SimulatedLearner(config, Pace(**TRAIN, ranks=case.ranks), run.engines).run(case.steps)
        found = Run(config, observe(config))
        sys.stderr.write(f"{case}: {found.observed.rates()}\n")
        return found


def compare(calibration, case, run):
    """What was measured, what was predicted, and the errors of the throughput."""
    measured = run.observed.rates()
    set_so = changed(calibration, {"workload.max_staleness": case.max_staleness})
    predicted = predict(set_so, case.shape, steps=PREDICTED_STEPS)
    errors = {name: getattr(predicted, name) / getattr(measured, name) - 1 for name in RATES}
    return {
        **asdict(case),
        "measured": asdict(measured),
        "predicted": {name: getattr(predicted, name) for name in asdict(measured) if name != "steps"},
        "learner_idle": {"measured": idle(run.observed), "predicted": predicted.learner_idle},
        "stale_share": {"measured": stale_share(run.observed), "predicted": predicted.stale_share},
        "errors": errors,
    }


def idle(observed):
    """Share of the time in which the learner waited for groups."""
    steps = observed.steady_steps()
    waited = sum(step.metrics["seconds_wait"] for step in steps)
    return waited / (len(steps) * observed.rates().step_s)


def stale_share(observed):
    """Groups dropped as too old, of all that came."""
    steps = observed.steady_steps()
    stale = sum(group.reason == "stale" for step in steps for group in step.dropped)
    return stale / (stale + sum(len(step.trained) for step in steps))


def largest(runs, rate):
    """The largest error of a run that was not calibrated with."""
    return max(abs(run["errors"][rate]) for run in runs if not run["calibrates"])


# ---- the page -----------------------------------------------------------------------------------------


def page(found, text):
    """The page with the table that is in it now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table(found) + "\n" + verdict(found) + "\n" + END + rest.split(END)[1]


def table(found):
    head = (
        "| engines | ranks | staleness | samples/s | predicted | error | tokens/s | predicted | error | "
        "versions behind (measured, predicted) | dropped as stale (the same) | learner idle (the same) |\n|"
        + " ---: |" * 12
        + "\n"
    )
    return head + "".join(map(row, found["runs"]))


def row(run):
    cells = [run["engines"], run["ranks"], run["max_staleness"], *rate(run, "samples_per_s", ".1f"),
             *rate(run, "tokens_per_s", ",.0f"), behind(run), percents(run["stale_share"]),
             percents(run["learner_idle"])]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |\n"


def rate(run, name, shown):
    error = "calibrates" if run["calibrates"] else f"{100 * run['errors'][name]:+.1f} %"
    return [format(run["measured"][name], shown), format(run["predicted"][name], shown), error]


def behind(run):
    return f"{run['measured']['staleness_mean']:.2f}, {run['predicted']['staleness_mean']:.2f}"


def percents(shares):
    return f"{100 * shares['measured']:.0f}, {100 * shares['predicted']:.0f} %"


def verdict(found):
    samples, tokens = (f"{100 * largest(found['runs'], name):.1f} %" for name in RATES)
    return (
        f"**The largest error of a run that was not used is {samples} of the samples a second and {tokens} of the "
        f"tokens a second**\n(bar of both: {100 * BAR:.0f} %).\n"
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-share", type=float, default=1.0, help="of the steps of each run")
    parser.add_argument("--at-once", type=int, default=3, help="runs at a time: they sleep more than they compute")
    parser.add_argument("--record", action="store_true", help="write results and page")
    return parser.parse_args()


def shortened(case, share):
    return Case(**{**asdict(case), "steps": max(6, round(case.steps * share))})


def main():
    options = parse()
    cases = [shortened(case, options.steps_share) for case in CASES]
    with contextlib.redirect_stdout(sys.stderr), Bench() as bench, ThreadPoolExecutor(options.at_once) as pool:
        runs = dict(zip(cases, pool.map(lambda case: measure(bench, case), cases), strict=True))
    calibration = calibrate([run for case, run in runs.items() if case.calibrates])
    found = [compare(calibration, case, run) for case, run in runs.items()]
    error = max(largest(found, name) for name in RATES)
    bar = {"figure": error, "bar": f"<= {BAR}", "reached": error <= BAR}
    said = {"calibration": calibration.model_dump(mode="json"), "runs": found, "bars": {"error": bar}}
    told = json.dumps(said, indent=1) + "\n"
    if options.record:
        RESULTS.write_text(told)
        PAGE.write_text(page(said, PAGE.read_text()))
    sys.stdout.write(told)
    return 0 if bar["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
