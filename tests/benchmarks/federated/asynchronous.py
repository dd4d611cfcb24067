"""FedAsync and FedBuff against synchronous rounds, with sites of unlike speeds: seconds to the same accuracy.

Synchronous rounds ask every site for as many steps, and once more for steps by its speed (``selection.adapt``).
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.benchmarks.federated import digits
from tests.benchmarks.federated.sites import SHOWN, SPEEDS, curve_of
from tests.benchmarks.federated.stage import Stage

SLOWEST_S = 0.25
"""Seconds of a group at the slowest site: what sites wait for is their own speed, and not this machine."""
STEPS = 4
KINDS = {
    "synchronous": {"strategy": {"name": "fedavg", "weigh_by": "equal"}, "quorum": len(SHOWN),
                    "selection": {"steps": STEPS}},
    "synchronous_adapted": {"strategy": {"name": "fedavg", "weigh_by": "equal"}, "quorum": len(SHOWN),
                            "selection": {"steps": 2 * STEPS, "adapt": True}},
    "fedasync": {"asynchronous": True, "buffer": 1, "strategy": {"name": "fedasync", "arguments": {"alpha": 0.4}}},
    "fedbuff": {"asynchronous": True, "buffer": 3, "strategy": {"name": "fedbuff", "weigh_by": "equal"}},
}  # fmt: skip
"""What the coordinator of each kind is told."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--accuracy", type=float, default=0.8, help="that is waited for")
    parser.add_argument("--most-s", type=float, default=400.0, help="seconds after which a kind is given up")
    parser.add_argument("--out", type=Path, default=Path("runs/federation"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    with Stage() as stage:
        for seed in options.seeds:
            model = digits.build_model(stage.directory / f"model-{seed}", seed)
            for kind in options.kinds:
                runs.append(one(stage, options, model, kind, seed))
                (options.out / f"asynchronous-{kind}-{seed}.json").write_text(json.dumps(runs[-1], indent=1))
    figures = {"accuracy": options.accuracy, "runs": runs, "ratios": ratios(runs)}
    figures["passed"] = judge(figures)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def judge(figures):
    """Whether every promise holds, and each asynchronous run was faster than the synchronous one."""
    kept = all(run["audits_ok"] and not run["audit"]["code"] and not any(run["codes"]) for run in figures["runs"])
    ratios = figures["ratios"].values()
    return kept and bool(ratios) and all(ratio is not None and ratio < 1 for ratio in ratios)


def ratios(runs):
    """Seconds of each asynchronous run by those of the synchronous one of its seed; null where one never got there."""
    seconds = {(run["kind"], run["seed"]): run["seconds_to_accuracy"] for run in runs}
    found = {}
    for (kind, seed), needed in seconds.items():
        base = seconds.get(("synchronous", seed))
        if kind.startswith("fed"):
            found[f"{kind}/{seed}"] = needed / base if needed and base else None
    return found


def one(stage, options, model, kind, seed):
    """One federation, until it has the accuracy on two versions in a row, or for so long."""
    coordinator = stage.federation(model, seed=seed, **{"deadline_s": 300.0, **KINDS[kind]})
    loops = [
        stage.loop(number, model, shown, SLOWEST_S / speed, seed=100 * seed + number, steps=100000,
                   federation=coordinator.section(number, steps=STEPS))
        for number, (shown, speed) in enumerate(zip(SHOWN, SPEEDS, strict=True))
    ]  # fmt: skip
    judging = digits.Judge(model)
    coordinator.start()
    began_s = time.time()
    for loop in loops:
        loop.start()
    reached = wait_for(coordinator, judging, options, began_s)
    codes = [loop.end() for loop in loops]
    coordinator.end()
    curve = curve_of(coordinator, judging, began_s)
    merges = coordinator.merges()
    return {
        "kind": kind, "seed": seed, "seconds_to_accuracy": reached, "codes": codes, "curve": curve,
        "merges": len(merges), "updates": sum(len(each.merged) for each in merges),
        "bytes": sum(each.metrics["bytes"] for each in merges),
        "staleness_max": max((part.staleness for each in merges for part in each.merged), default=0),
        "audits_ok": all(loop.verdict().ok for loop in loops), "audit": coordinator.audit(),
    }  # fmt: skip


def wait_for(coordinator, judging, options, began_s):
    """Seconds from the first version with which sites could train to the first of two that are accurate enough."""
    before, seen, first_s = False, 0, None
    while time.time() < began_s + options.most_s:
        time.sleep(1.0)
        for announced in coordinator.versions()[seen:] if coordinator.is_there() else []:
            seen += 1
            good = judging.accuracy(coordinator.file(announced.version)) >= options.accuracy
            if good and before:
                return first_s
            if good:
                first_s = round(announced.published_at.timestamp() - began_s, 1)
            before = good
    return None


if __name__ == "__main__":
    raise SystemExit(main())
