"""What staleness costs and what a correction gives back: a sweep on the demo's task.

    staleness 0, 1, 2, 4, 8  x  correction  x  seed ──► tests/benchmarks/lockstep.py ──► docs/results/staleness.jsonl
                                                                                              │
                                       docs/staleness.md: its table ◄─────────────────────────┴──► staleness.svg

    make -s bench BENCH=staleness                                   runs what is missing, then makes table and plot
    python -m tests.benchmarks.staleness --jobs 8 --to FILE.jsonl   on a GPU; several runs side by side

A run that stands in the file is not done again, so the sweep can be stopped at any time. On an H200 eight at a time
take 33 s together, on two cores one takes about 4 minutes. Prints one JSON object: the tables. No bar: the sweep
shows, it does not judge.
"""

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from typing import get_args

from schemas.objectives import CorrectionName
from tests.benchmarks.lockstep import ACCURACY_EVERY, Setting, prepare

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE, PLOT = DOCS / "results/staleness.jsonl", DOCS / "staleness.md", DOCS / "results/staleness.svg"
STALENESS = (0, 1, 2, 4, 8)
BEGIN, END = "<!-- table: made by tests/benchmarks/staleness.py -->\n", "<!-- end of table -->\n"
SHUFFLED = "none, rewards shuffled"
FIGURES = {
    "After the last step": lambda run: run["accuracy"][-1],
    "Mean of all nine evaluations, from before the first step on": lambda run: statistics.fmean(run["accuracy"]),
}
"""Of a run, from its held-out accuracies."""


def main():
    options = parse()
    missing = [setting for setting in settings(options) if asdict(setting) not in done(options.to)]
    if missing:
        sweep(missing, options)
    runs = read(options.to)
    if options.to == RESULTS:
        tables = "\n".join(f"{name}:\n\n{table(runs, figure)}" for name, figure in FIGURES.items())
        PAGE.write_text(with_table(PAGE.read_text(), tables))
        plot(runs)
    found = {name: cells(runs, figure) for name, figure in FIGURES.items()}
    sys.stdout.write(json.dumps({"runs": len(runs), "missing": len(missing), **found}, indent=1) + "\n")
    return 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory; default: the demo's model")
    parser.add_argument("--staleness", type=int, nargs="+", default=STALENESS)
    parser.add_argument("--corrections", nargs="+", choices=get_args(CorrectionName), default=get_args(CorrectionName))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--to", type=Path, default=RESULTS, help="file of results")
    return parser.parse_args()


def settings(options):
    """All runs of the sweep, seed by seed, so that a stopped one is whole for the first seeds; controls come first."""
    shape = {"steps": options.steps, "learning_rate": options.learning_rate}
    for seed in options.seeds:
        yield Setting(0, "none", seed, shuffled=True, **shape)
        for staleness in options.staleness:
            for correction in options.corrections:
                yield Setting(staleness, correction, seed, **shape)


def done(path):
    return [run["setting"] for run in read(path)]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sweep(missing, options):
    if not options.model:
        from pipelines.local.demo_model import demo_model

        options.model = demo_model()
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    with (
        ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=begin, initargs=(threads,)) as pool,
        options.to.open("a") as file,
    ):
        for future in as_completed([pool.submit(one, options.model, setting) for setting in missing]):
            run = future.result()
            file.write(json.dumps(run) + "\n")
            file.flush()
            setting = run["setting"]
            sys.stderr.write(
                f"{setting['staleness']} {setting['correction']} {setting['seed']}: {run['accuracy'][-1]}\n"
            )


def begin(threads):
    os.environ["OMP_NUM_THREADS"] = str(threads)
    prepare()


@cache
def ranks():
    """Of this process: DeepSpeed joins once."""
    from trainers.ranks import Ranks

    joined = Ranks()
    Finalize(None, joined.leave, exitpriority=1)
    return joined


def one(model, setting):
    """One run, in a process that did others before."""
    import torch

    from tests.benchmarks.lockstep import Lockstep
    from trainers.precision import fastest_dtype

    dtype, begun = fastest_dtype(), time.monotonic()
    run = Lockstep(model, dtype, setting, ranks())
    try:
        found = run.run()
    finally:
        run.close()
    figures = [each for each in found["figures"] if each]
    means = {name: statistics.fmean(each[name] for each in figures) for name in figures[0]} if figures else {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    rounded = {name: [round(value, 4) for value in found[name]] for name in ("accuracy", "rewards")}
    means = {name: round(value, 5) for name, value in means.items()}
    of = {"device": device, "dtype": dtype, "seconds": round(time.monotonic() - begun, 1)}
    return {"setting": asdict(setting), **of, **rounded, "means": means}


# ---- what is shown of it ------------------------------------------------------------------------------


def cells(runs, figure):
    """For each row and staleness the figure of each seed."""
    found = {}
    for run in sorted(runs, key=lambda run: run["setting"]["seed"]):
        setting = run["setting"]
        row = SHUFFLED if setting["shuffled"] else setting["correction"]
        found.setdefault(row, {}).setdefault(setting["staleness"], []).append(round(figure(run), 4))
    order = [*get_args(CorrectionName), SHUFFLED]
    return {row: dict(sorted(found[row].items())) for row in order if row in found}


def table(runs, figure):
    head = f"| correction | {' | '.join(f'staleness {each}' for each in STALENESS)} |\n"
    lines = [
        f"| {row} | {' | '.join(cell(by.get(each, [])) for each in STALENESS)} |\n"
        for row, by in cells(runs, figure).items()
    ]
    return head + "| --- " * (len(STALENESS) + 1) + "|\n" + "".join(lines)


def cell(found):
    return f"{statistics.fmean(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "not run"


def with_table(page, rows):
    before, rest = page.split(BEGIN)
    return before + BEGIN + rows + END + rest.split(END)[1]


def plot(runs):
    """The mean accuracy over staleness, a line a correction; and how it rose without one, a line a staleness."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "asyncflow"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    mean_of_run = list(FIGURES.values())[1]
    for row, by in cells(runs, mean_of_run).items():
        if row != SHUFFLED:
            left.plot([str(each) for each in by], [statistics.fmean(found) for found in by.values()], "o-", label=row)
    left.set(xlabel="staleness (versions)", ylabel="held-out accuracy, mean over a run", ylim=(0.7, 0.9))
    left.legend(fontsize=8)
    for staleness in STALENESS:
        curves = [run["accuracy"] for run in runs if is_plain(run["setting"], staleness)]
        if curves:
            mean = [statistics.fmean(each) for each in zip(*curves, strict=True)]
            right.plot([ACCURACY_EVERY * n for n in range(len(mean))], mean, label=f"staleness {staleness}")
    right.set(xlabel="step", ylabel="held-out accuracy, no correction", ylim=(0, 1.02))
    right.legend(fontsize=8)
    figure.savefig(PLOT, metadata={"Date": None})


def is_plain(setting, staleness):
    return (setting["staleness"], setting["correction"], setting["shuffled"]) == (staleness, "none", False)


if __name__ == "__main__":
    sys.exit(main())
