"""Coordinator and sites killed or stopped at random for some minutes, then half of the sites gone for good.

Promises are checked from the topics: the coordinator's audit (no update lost or merged twice), that of each site's run
(no sample in two updates), and that what sites' ledgers say they handed over is what was announced, but for the update
that one was about to announce when it was killed for good.
"""

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from schemas.ledger import UpdateEntry
from tests.benchmarks.federated import digits
from tests.benchmarks.federated.sites import SHOWN, SPEEDS
from tests.benchmarks.federated.stage import Stage
from tests.support.trajectories import read_ledger

SLOWEST_S = 0.16
STOPPED, STOPPED_S = 0.2, 6.0
"""Share of the sites' faults that are stops, and how long those are."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of kills")
    parser.add_argument("--half-s", type=float, default=90.0, help="afterwards, with half of the sites")
    parser.add_argument("--every-s", type=float, default=8.0, help="mean time between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/federation"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with Stage() as stage:
        figures = one(stage, options)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def one(stage, options):
    model = digits.build_model(stage.directory / "model", options.seed)
    judging, chance = digits.Judge(model), random.Random(options.seed)
    coordinator = stage.federation(
        model, seed=options.seed, quorum=1, keep=3, deadline_s=20.0, strategy={"name": "fedavg", "weigh_by": "equal"},
        selection={"steps": 4, "gone_after_s": 10.0},
    )  # fmt: skip
    loops = [
        stage.loop(number, model, shown, SLOWEST_S / speed, seed=number, steps=100000, checkpoint_every=3,
                   federation=coordinator.section(number, codec={"name": "int8"}))
        for number, (shown, speed) in enumerate(zip(SHOWN, SPEEDS, strict=True))
    ]  # fmt: skip
    coordinator.start()
    for loop in loops:
        loop.start()
    killed = kill_for(options, chance, coordinator, loops)
    at_half = len(coordinator.merges())
    for loop in loops[: len(loops) // 2]:
        loop.nursery.kill(signal.SIGKILL)
        loop.nursery.wait()
    time.sleep(options.half_s)
    merged_by_half = len(coordinator.merges()) - at_half
    codes = [loop.end() for loop in loops[len(loops) // 2 :]]
    time.sleep(2)
    coordinator.end()
    return judge(coordinator, loops, judging, killed, at_half, merged_by_half, codes)


def kill_for(options, chance, coordinator, loops):
    """Kills one after the other, and starts it again at once; returns how often which."""
    killed, over_s = Counter(), time.monotonic() + options.seconds
    while time.monotonic() < over_s:
        time.sleep(min(chance.expovariate(1 / options.every_s), over_s - time.monotonic() + 0.01))
        number = chance.randrange(len(loops) + 1)
        if number == len(loops):
            coordinator.process.kill()
            coordinator.process.wait()
            coordinator.start()
            killed["coordinator"] += 1
            continue
        loop = loops[number]
        if loop.nursery.has_ended():
            raise RuntimeError(f"a learner ended by itself: {loop.nursery.said()[-4000:]}")
        if chance.random() < STOPPED:
            loop.nursery.kill(signal.SIGSTOP)
            time.sleep(STOPPED_S)
            loop.nursery.kill(signal.SIGCONT)
            killed["stopped"] += 1
            continue
        loop.nursery.kill(signal.SIGKILL)
        loop.nursery.wait()
        loop.learn()
        killed[f"site{number}"] += 1
    return killed


def compare(coordinator, loops):
    """What the sites' ledgers have against what was announced: how many are equal, and what is not."""
    announced = {update.name: update for update in coordinator.updates()}
    written = [entry.update for loop in loops for entry in read_ledger(loop.config) if isinstance(entry, UpdateEntry)]
    return {
        "equal": sum(announced.get(update.name) == update for update in written),
        "unannounced": sum(update.name not in announced for update in written),
        "other": sum(update.name in announced and announced[update.name] != update for update in written)
        + len(announced.keys() - {update.name for update in written}),
    }


def judge(coordinator, loops, judging, killed, at_half, merged_by_half, codes):  # noqa: PLR0917
    merges, verdicts = coordinator.merges(), [loop.verdict() for loop in loops]
    audit, handed = coordinator.audit(), compare(coordinator, loops)
    return {
        "killed": dict(killed), "kills": sum(killed.values()), "merges": at_half,
        "merges_with_half_of_the_sites": merged_by_half,
        "updates_merged": sum(len(each.merged) for each in merges),
        "left_out": dict(Counter(left.reason for each in merges for left in each.left_out)),
        "audit": audit, "handed_over": handed,
        "sites": [{"ok": each.ok, "faults": each.faults, "steps": each.steps, "generations": each.generations,
                   "updates": each.updates, "contributed_twice": each.contributed_twice} for each in verdicts],
        "accuracy": judging.accuracy(coordinator.file(coordinator.versions()[-1].version)),
        "codes": codes,
        "passed": not audit["code"] and all(each.ok for each in verdicts) and merged_by_half > 0 and not any(codes)
        and not handed["other"] and handed["unannounced"] <= len(loops) // 2,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
