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
        run.send(sums((case.steps + 2) * GROUPS))
        run.warm()
        SimulatedLearner(config, Pace(**TRAIN, ranks=case.ranks)).run(case.steps)
        found = Run(config, observe(config))
        sys.stderr.write(f"{case}: {found.observed.rates()}\n")
        return found


def compare(calibration, case, run):
    """What was measured, what was predicted, and the error of the throughput."""
    measured = run.observed.rates()
    set_so = changed(calibration, {"workload.max_staleness": case.max_staleness})
    predicted = predict(set_so, case.shape, steps=PREDICTED_STEPS)
    error = predicted.samples_per_s / measured.samples_per_s - 1
    return {
        **asdict(case),
        "measured": asdict(measured),
        "predicted": {name: getattr(predicted, name) for name in asdict(measured) if name != "steps"},
        "learner_idle": {"measured": idle(run.observed), "predicted": predicted.learner_idle},
        "error": error,
    }


def idle(observed):
    """Share of the time in which the learner waited for groups."""
    steps = observed.steady_steps()
    waited = sum(step.metrics["seconds_wait"] for step in steps)
    return waited / (len(steps) * observed.rates().step_s)


# ---- the page -----------------------------------------------------------------------------------------


def page(found, text):
    """The page with the table that is in it now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table(found) + "\n" + END + rest.split(END)[1]


def table(found):
    head = (
        "| engines | ranks | staleness | samples/s | predicted | error | versions behind (measured, predicted) | "
        "learner idle (the same) |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    return head + "".join(map(row, found["runs"]))


def row(run):
    measured, predicted, waits = run["measured"], run["predicted"], run["learner_idle"]
    error = "calibrates" if run["calibrates"] else f"{100 * run['error']:+.1f} %"
    cells = [
        run["engines"], run["ranks"], run["max_staleness"], f"{measured['samples_per_s']:.1f}",
        f"{predicted['samples_per_s']:.1f}", error,
        f"{measured['staleness_mean']:.2f}, {predicted['staleness_mean']:.2f}",
        f"{100 * waits['measured']:.0f}, {100 * waits['predicted']:.0f} %",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |\n"


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
    errors = [abs(each["error"]) for each in found if not each["calibrates"]]
    bar = {"figure": max(errors), "bar": f"<= {BAR}", "reached": max(errors) <= BAR}
    said = {"calibration": calibration.model_dump(mode="json"), "runs": found, "bars": {"error": bar}}
    told = json.dumps(said, indent=1) + "\n"
    if options.record:
        RESULTS.write_text(told)
        PAGE.write_text(page(said, PAGE.read_text()))
    sys.stdout.write(told)
    return 0 if bar["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
