"""Generation: is the engine kept full, is the pipeline out of its way, and what do weights cost that change?

    python -m tests.benchmarks.generation                      all parts; code 1 if a figure misses its bar
    python -m tests.benchmarks.generation --parts instant latency

Prints one JSON object: for each part its figures and, under ``bars``, what was asked for and whether it was
reached. Ratios are of runs side by side on one machine. Parts whose name says so use vLLM with
SmolLM2-135M; all others the simulated engine, with a real broker, pipeline and Prism.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time

from pipelines.local.demo_model import demo_model
from tests.benchmarks import engine_ratio, stages, workers
from tests.benchmarks.stack import ROOT, Bench, end_orderly, sums

GROUP = {"group_size": 8}
TOKENS = {"fixed_tokens": 64}


def at_least(figure, bar):
    return {"figure": figure, "bar": f">= {bar}", "reached": figure >= bar}


def at_most(figure, bar):
    return {"figure": figure, "bar": f"<= {bar}", "reached": figure <= bar}


def instant(bench, groups=12_000):
    """Engines that answer at once, groups of 8 samples of 64 tokens: what the pipeline itself can do."""
    prompts = sums(groups)
    with bench.run([TOKENS], **GROUP, max_in_flight=192, max_bundle_groups=256) as run:
        run.send(prompts)
        run.warm()
        before = run.cpu_s()
        run.admit()
        run.watch.wait_for(groups, 120, run.process)
        after, rate = run.cpu_s(), run.watch.steady_rate()
        committed = run.metric_sums()
    cpu_us = {name: 1e6 * (after[name] - before.get(name, 0.0)) / groups for name in after}
    stage_us = stages.measure(str(bench.model), prompts[0], samples=8, tokens=64)
    stage_us["commit_wall"] = 1e6 * committed["asyncflow_write_commit_seconds_sum"] / groups
    return {
        "groups_s": rate,
        "cpu_us_per_group": cpu_us,
        "stage_us_per_group": stage_us,
        "bars": {"groups_s": at_least(rate, 500)},
    }


def latency(bench, groups=4_000):
    """From the last token of a group to a record that the learner can read, 256 requests in flight."""
    with bench.run([{**TOKENS, "mean_s": 1.0}], **GROUP, max_in_flight=256) as run:
        run.send(sums(groups))
        run.warm()
        run.admit()
        run.watch.wait_for(groups, 120, run.process)
        figures = {"groups_s": run.watch.steady_rate(), **run.watch.percentiles_ms()}
    bars = {"p50_ms": at_most(figures["p50_ms"], 50), "p99_ms": at_most(figures["p99_ms"], 250)}
    return {**figures, "bars": bars}


def in_flight(bench, wave=1_024, mean_s=0.5):
    """1,024 requests in flight; beside it the same pipeline with a barrier after every 1,024 answers."""
    ideal = wave / mean_s
    engines, settings = [{"fixed_tokens": 16, "mean_s": mean_s}], {"group_size": 1, "max_in_flight": wave}
    with bench.run(engines, **settings, max_bundle_groups=512) as run:
        run.send(sums(12 * wave))
        run.warm()
        run.admit()
        run.watch.wait_for(12 * wave, 120, run.process)
        streaming, latency_ms = run.watch.steady_rate(skip_s=1.0), run.watch.percentiles_ms()
    with bench.run(engines, **settings, max_bundle_groups=512) as run:
        run.send(sums(5 * wave))
        run.warm()
        started = time.monotonic()
        for waves in range(1, 6):
            run.admit(waves * wave)
            run.watch.wait_for(waves * wave, 60, run.process)
        synchronous = 5 * wave / (time.monotonic() - started)
    return {
        "groups_s": streaming,
        "ideal_groups_s": ideal,
        **latency_ms,
        "batch_synchronous_groups_s": synchronous,
        "over_batch_synchronous": streaming / synchronous,
        "bars": {"of_ideal": at_least(streaming / ideal, 0.9)},
    }


def backlog(bench, sizes=(10_000, 100_000, 1_000_000), groups=4_000):
    """The same rate and latency whatever waits in the topic; 128 in flight, answers of a mean of 0.5 s."""
    figures = {}
    for size in sizes:
        with bench.run([{**TOKENS, "mean_s": 0.5}], **GROUP, max_in_flight=128) as run:
            run.send(sums(size))
            run.warm()
            run.admit()
            run.watch.wait_for(groups, 120, run.process)
            figures[str(size)] = {"groups_s": run.watch.steady_rate(), **run.watch.percentiles_ms()}
    rates = [figure["groups_s"] for figure in figures.values()]
    medians = [figure["p50_ms"] for figure in figures.values()]
    bars = {
        "rate_spread": at_most(max(rates) / min(rates) - 1, 0.1),
        "latency_spread": at_most(max(medians) / min(medians) - 1, 0.1),
    }
    return {**figures, "bars": bars}


def staleness(bench, steps=30, groups_per_step=8):
    """Wall clock to so many steps with staleness 0, 1, 2 and 4; the learner takes as long as a batch's generation.

    Answers are log-normal (sigma 1). The learner is simulated too: it waits for its groups, sleeps, and
    moves the frontier by the rule of ``trainers/admission.py``.
    """
    engine = {"fixed_tokens": 0, "mean_tokens": 64, "sigma": 1.0, "token_s": 0.008, "slots": 64, "obliging": 1}
    learner = {"groups_per_step": groups_per_step, "engine": engine}
    train_s = _wall_s(bench, bound=0, steps=steps, train_s=0.0, **learner) / steps
    seconds = {bound: _wall_s(bench, bound=bound, steps=steps, train_s=train_s, **learner) for bound in (0, 1, 2, 4)}
    faster = {str(bound): seconds[0] / second for bound, second in seconds.items()}
    return {
        "train_s": train_s,
        "wall_s": {str(bound): second for bound, second in seconds.items()},
        "times_faster": faster,
        "bars": {"times_faster_at_2": at_least(faster["2"], 1.8)},
    }


def _wall_s(bench, *, engine, bound, steps, groups_per_step, train_s):
    with bench.run([engine], **GROUP, max_in_flight=64, sampling={"max_tokens": 1024}) as run:
        run.send(sums((steps + 1 + bound) * groups_per_step))
        run.warm()
        started = time.monotonic()
        for step in range(steps):
            run.admit((step + 1 + bound) * groups_per_step, version=step + 1)
            run.watch.wait_for((step + 1) * groups_per_step, 120, run.process, poll_s=0.01)
            time.sleep(train_s)
        return time.monotonic() - started


def smollm2(bench, groups=24, tokens=96):
    """vLLM on a CPU with SmolLM2-135M: tokens a second through the pipeline over those of offline generation."""
    figures = engine_ratio.measure(bench, str(demo_model()), groups=groups, tokens=tokens)
    return {**figures, "bars": {"ratio": at_least(figures["ratio"], 0.95)}}


def smollm2_weights(bench):
    """From the end of the optimizer step to the first token under the new weights, SmolLM2-135M on a CPU."""
    command = [sys.executable, "-m", "tests.benchmarks.weights", "--transport", "store"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    figures = json.loads(done.stdout)
    return {**figures, "bars": {"first_token_s": at_most(figures["first_token_s"]["median"], 1.0)}}


def worker_faults(bench):
    """Workers killed, added, frozen and slowed in the middle of a run."""
    figures = workers.measure()
    bars = {event: at_least(figures[event]["rate_ratio"], 0.9) for event in ("killed", "added", "frozen", "slowed")}
    accounts = {name: at_most(figures[name], 0) for name in ("lost", "doubled")}
    return {**figures, "bars": {**bars, **accounts}}


PARTS = {
    part.__name__: part
    for part in (instant, latency, in_flight, backlog, staleness, worker_faults, smollm2, smollm2_weights)
}


def _run(part, bench):
    """A part that fails has missed its bar; the others go on."""
    try:
        return part(bench)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        return {"bars": {"ran": {"figure": repr(error)[:2000], "bar": "no error", "reached": False}}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    wanted = parser.parse_args().parts
    end_orderly()
    figures = {}
    with contextlib.redirect_stdout(sys.stderr), Bench() as bench:  # libraries print as they like
        for name in wanted:
            sys.stderr.write(f"{name} ...\n")
            figures[name] = _run(PARTS[name], bench)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    bars = [bar for part in figures.values() for bar in part["bars"].values()]
    return 0 if all(bar["reached"] for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
