"""Hosts: faults on a cluster with three brokers, a host for each part, and what is lost, doubled and stalled.

    Hosts ──► Cluster ──► drill: kills, cuts, slow and lossy links, drawn by the seed ──► one JSON object
                              └──► audited meanwhile and afterwards, from the log alone

    make -s bench BENCH=hosts BENCH_ARGS="--minutes 10 --seed 1"

Bars: nothing lost, nothing doubled, every count of the audit 0, each broker hurt (of ``--faults`` only those that these
are about), and no fault of a broker keeps steps from being committed for longer than 30 s. The engine is simulated
unless ``--engine vllm`` is given: two vLLM servers take minutes to start on two cores, and what is hurt is the log.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from pipelines.cli.logs import configure_logging
from pipelines.drill.run import Plan, drill, drill_config
from schemas.config import KafkaConfig, validate
from tests.benchmarks.stack import begin
from tests.support.cluster import BROKERS, HOSTS, Cluster
from tests.support.host_faults import HOST_FAULTS, broker_of
from tests.support.hosts import Hosts, NoHostsError

STALL_S = 30.0


def config_of(seed):
    """That of a drill, but for how long anything is waited for: these are the project's own."""
    tree = drill_config("hosts", seed).model_dump(mode="json")
    tree["kafka"] = KafkaConfig().model_dump(mode="json")
    return validate(tree, "of the benchmark")


def run(options, runs):
    """Drills a cluster and returns the account."""
    with contextlib.redirect_stdout(sys.stderr), Hosts(HOSTS, options.seed) as hosts:  # libraries print as they like
        plan = Plan(
            seed=options.seed,
            minutes=options.minutes,
            times=options.times,
            faults=tuple(options.faults or HOST_FAULTS),
            baseline_s=options.baseline_s,
            config=config_of(options.seed),
            runs=runs,
            more=HOST_FAULTS,
            make_stack=partial(Cluster, hosts=hosts, engine=options.engine),
            pairs=0.0,
            replays=False,
        )
        return drill(plan)


def account(report, options):
    """The figures that have bars first, then everything."""
    stalls = {broker: worst(report, broker) for broker in BROKERS}
    hurt = {broker_of(blow.fault) for blow in report.struck}
    spared = [broker for broker in to_hurt(options) if broker not in hurt]
    groups = report.groups_per_s
    goodput = round(groups["with"] / groups["without"], 3) if groups.get("without") else None
    recovered = all(blow.stall_s is not None for blow in report.struck)
    soon = all(stall <= STALL_S for stall in stalls.values() if stall is not None)
    verdict = report.verdict
    return {
        "passed": report.ok and recovered and soon and not spared,
        "lost": verdict.lost,
        "duplicate": verdict.duplicate,
        "longest_stall_s": stalls,
        "brokers_not_hurt": spared,
        "goodput": {"groups_per_s": groups, "with_over_without": goodput},
        "faults": [blow.fault for blow in report.struck],
        "audit_ok": verdict.ok,
        "engine": options.engine,
        **report.to_json(),
    }


def to_hurt(options):
    """The brokers that the drill has to have hurt."""
    about = {broker_of(fault) for fault in options.faults or HOST_FAULTS}
    return [broker for broker in BROKERS if broker in about]


def worst(report, broker):
    """The longest stall of all faults of a broker that the run recovered from, in seconds; None if there was none."""
    of_it = [blow for blow in report.struck if broker_of(blow.fault) == broker]
    return max((round(blow.stall_s, 1) for blow in of_it if blow.stall_s is not None), default=None)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are drawn")
    parser.add_argument("--times", type=int, help="each fault so often instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--baseline-s", type=float, default=60.0, help="how long nothing is hurt, to compare with")
    parser.add_argument("--engine", choices=["simulated", "vllm"], default="simulated")
    parser.add_argument("--faults", nargs="+", choices=HOST_FAULTS, metavar="NAME", help=", ".join(HOST_FAULTS))
    parser.add_argument("--keep", type=Path, help="a directory for logs and topics; one that goes away otherwise")
    return parser.parse_args()


def main():
    options = parse()
    configure_logging()  # what the stack tells goes to standard error
    with tempfile.TemporaryDirectory(prefix="asyncflow-hosts-") as directory:
        runs = options.keep or Path(directory)
        begin(runs)
        try:
            report = run(options, runs)
        except NoHostsError as error:
            sys.exit(str(error))
    told = account(report, options)
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 0 if told["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
