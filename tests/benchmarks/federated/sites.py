"""Four sites of unlike data and unlike speeds against one learner with all data, and against each site alone."""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.benchmarks.federated import digits
from tests.benchmarks.federated.stage import Stage

SHOWN = ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))
"""Which digits each site sees."""
SPEEDS = (8, 4, 2, 1)
"""Groups of answers in the time in which the slowest site makes one."""
SLOWEST_S = 0.1
"""Seconds of a group at the slowest site."""
OF_POOLED = 0.9
"""Of the accuracy of one learner with all data, at least."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=8, help="of a site of middle speed in a round")
    parser.add_argument("--most-steps", type=int, default=240, help="of a learner by itself; by then none improves")
    parser.add_argument("--codec", default="full")
    parser.add_argument("--out", type=Path, default=Path("runs/federation"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    with Stage() as stage:
        for seed in options.seeds:
            runs.append(one(stage, options, seed))
            (options.out / f"sites-seed-{seed}.json").write_text(json.dumps(runs[-1], indent=1))
    figures = {"runs": runs, "passed": all(judge(run) for run in runs)}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def judge(run):
    """Whether the federation is near the learner with all data, and above every site alone."""
    near = run["federated"]["accuracy"] >= OF_POOLED * run["pooled"]["accuracy"]
    return near and run["federated"]["accuracy"] > 1.5 * max(run["alone"]["accuracies"]) and run["audits_ok"]


def one(stage, options, seed):
    """All three kinds of runs from the same model."""
    model = digits.build_model(stage.directory / f"model-{seed}", seed)
    judging = digits.Judge(model)
    start = judging.accuracy(model / "model.safetensors")
    federated, loops = federate(stage, options, model, judging, seed)
    steps = [verdict.steps for verdict in loops]
    pooled = alone(stage, model, judging, seed, [(digits.DIGITS, SLOWEST_S / max(SPEEDS), options.most_steps)])
    each = [
        (shown, SLOWEST_S / speed, min(number, options.most_steps))
        for shown, speed, number in zip(SHOWN, SPEEDS, steps, strict=True)
    ]
    apart = alone(stage, model, judging, seed, each)
    return {
        "seed": seed,
        "accuracy_before": start,
        "federated": federated,
        "pooled": {"accuracy": pooled["accuracies"][0], **pooled},
        "alone": apart,
        "audits_ok": all(
            [*(verdict.ok for verdict in loops), not federated["audit"]["code"], pooled["ok"], apart["ok"]]
        ),
    }


def federate(stage, options, model, judging, seed):
    """Until all rounds are merged."""
    coordinator = stage.federation(
        model, rounds=options.rounds, quorum=len(SHOWN), deadline_s=300.0, seed=seed,
        strategy={"name": "fedavg", "weigh_by": "equal"},
        selection={"steps": options.steps, "adapt": True, "gone_after_s": 30.0},
    )  # fmt: skip
    loops = [
        stage.loop(number, model, shown, SLOWEST_S / speed, seed=100 * seed + number, steps=100000,
                   federation=coordinator.section(number, codec={"name": options.codec}))
        for number, (shown, speed) in enumerate(zip(SHOWN, SPEEDS, strict=True))
    ]  # fmt: skip
    began_s = time.time()
    for loop in loops:
        loop.start()
    coordinator.start()
    code = coordinator.process.wait(1800)
    codes = [loop.end() for loop in loops]
    if code or any(codes):
        raise RuntimeError(f"{code} {codes} {coordinator.said()[-3000:]} {loops[0].nursery.said()[-3000:]}")
    curve = curve_of(coordinator, judging, began_s)
    merges = coordinator.merges()
    return {
        "accuracy": curve[-1]["accuracy"],
        "curve": curve,
        "bytes_per_round": sum(each.metrics["bytes"] for each in merges) / len(merges),
        "updates": sum(len(each.merged) for each in merges),
        "left_out": [left.reason for each in merges for left in each.left_out],
        "samples": [loop.samples() for loop in loops],
        "audit": coordinator.audit(),
    }, [loop.verdict() for loop in loops]


def curve_of(coordinator, judging, began_s):
    """Every global version, when it was there and what it can."""
    return [
        {
            "version": each.version,
            "seconds": round(each.published_at.timestamp() - began_s, 1),
            "accuracy": judging.accuracy(coordinator.file(each.version)),
        }
        for each in coordinator.versions()
    ]


def alone(stage, model, judging, seed, each):
    """Learners of no federation: digits, seconds of a group, and steps of each."""
    loops = [stage.loop(number, model, shown, seconds, seed=100 * seed + number, steps=steps)
             for number, (shown, seconds, steps) in enumerate(each)]  # fmt: skip
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.wait(1800)
    return {
        "accuracies": [judging.accuracy(loop.newest_weights()) for loop in loops],
        "samples": [loop.samples() for loop in loops],
        "ok": all(loop.verdict().ok for loop in loops),
    }


if __name__ == "__main__":
    raise SystemExit(main())
