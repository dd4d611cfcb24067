"""A run over nine hosts with three brokers survives that brokers and links are hurt; nothing is lost or trained twice.

The engine is simulated, as ``make bench BENCH=hosts`` has it, which strikes for ten minutes and also bounds how long
each fault may hold the run up.
"""

from argparse import Namespace
from pathlib import Path

import pytest

from tests.benchmarks import hosts as benchmark

pytestmark = pytest.mark.timeout(600)
FAULTS = ["kill kafka-1", "cut kafka-2", "lossy kafka-3"]


def test_brokers_that_are_killed_and_cut_off_cost_nothing_but_time(make_hosts, tmp_path, monkeypatch):
    make_hosts("a")  # or it is skipped
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    options = Namespace(seed=1, minutes=0, times=1, faults=FAULTS, baseline_s=0.0, engine="simulated")
    report = benchmark.run(options, tmp_path)
    assert report.ok, report.to_json()["counts"] | {"ended": report.ended}
    assert sorted(blow.fault for blow in report.struck) == sorted(FAULTS)
    assert all(blow.witnesses and blow.stall_s for blow in report.struck)
    told = benchmark.account(report, "simulated")
    assert told["lost"] == told["duplicate"] == 0
    assert all(told["longest_stall_s"].values())
