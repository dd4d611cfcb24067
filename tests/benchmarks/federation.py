"""Federated learning on one machine, in parts: many sites, bad ones, unlike ones, and some that are killed.

    make -s bench BENCH=federation BENCH_ARGS="thousand"     1,000 simulated sites: rounds a minute, memory flat
    make -s bench BENCH=federation BENCH_ARGS="bad_site"     one bad site of four, against each strategy
    make -s bench BENCH=federation BENCH_ARGS="sites"        four sites with unlike data and speeds
    make -s bench BENCH=federation BENCH_ARGS="asynchronous" the same without rounds
    make -s bench BENCH=federation BENCH_ARGS="kills"        coordinator and sites killed for ten minutes

What follows the part is the part's own; ask it with --help. Each prints one JSON object and ends with 1 if a figure
misses its bar.
"""

import importlib
import sys

from tests.benchmarks.stack import end_orderly
from tests.support.hosts import NoHostsError

PARTS = ("thousand", "bad_site", "sites", "asynchronous", "kills")


def main(arguments):
    """Runs a part and returns its exit code."""
    if not arguments or arguments[0] not in PARTS:
        sys.stderr.write(f"{__doc__}\nexpected one of {', '.join(PARTS)}, given {' '.join(arguments) or 'nothing'}\n")
        return 0 if arguments == ["--help"] else 2
    end_orderly()
    try:
        return importlib.import_module(f"tests.benchmarks.federated.{arguments[0]}").main(arguments[1:])
    except NoHostsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
