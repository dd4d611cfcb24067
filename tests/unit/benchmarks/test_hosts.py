"""The bars of the benchmark of hosts."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.audit import audit
from pipelines.drill.report import Report
from pipelines.drill.scene import Blow
from pipelines.log import RunLog
from tests.benchmarks.hosts import account
from tests.support.host_faults import HOST_FAULTS, broker_of

AT = datetime(2026, 1, 31, tzinfo=UTC)


def blow(fault, stall_s):
    recovered = None if stall_s is None else AT + timedelta(seconds=40)
    return Blow(fault, AT, AT, recovered_at=recovered, witnesses=["seen"], stall_s=stall_s)


def of(*blows):
    report = Report("hosts", 1, list(blows), audit("hosts", RunLog()))
    report.groups_per_s = {"without": 8.0, "with": 6.0}
    return account(report, "simulated")


def test_stalls_are_told_by_broker_and_goodput_as_a_share():
    told = of(blow("cut kafka-1", 9.96), blow("kill kafka-1", 4.0), blow("lossy kafka-2", 1.0), blow("cut beam", 90.0))
    assert told["longest_stall_s"] == {"kafka-1": 10.0, "kafka-2": 1.0, "kafka-3": None}
    assert told["goodput"]["with_over_without"] == 0.75
    assert told["passed"]


@pytest.mark.parametrize("stall_s", [30.1, None])
def test_a_broker_that_holds_up_the_run_for_too_long_misses_the_bar(stall_s):
    assert not of(blow("cut kafka-3", stall_s))["passed"]


def test_every_broker_has_faults_of_its_own():
    about = [broker_of(fault) for fault in HOST_FAULTS]
    assert {about.count(name) for name in ("kafka-1", "kafka-2", "kafka-3")} == {6}
    assert about.count(None) == len(HOST_FAULTS) - 18
