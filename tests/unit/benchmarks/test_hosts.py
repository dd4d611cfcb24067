"""The bars of the benchmark of hosts."""

from argparse import Namespace
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.audit import audit
from pipelines.drill.report import Report
from pipelines.drill.scene import Blow
from pipelines.log import RunLog
from schemas.config import RunConfig
from tests.benchmarks.hosts import account
from tests.support import cluster
from tests.support.host_faults import HOST_FAULTS, broker_of, cut, hurt

AT = datetime(2026, 1, 31, tzinfo=UTC)


def blow(fault, stall_s):
    recovered = None if stall_s is None else AT + timedelta(seconds=40)
    return Blow(fault, AT, AT, recovered_at=recovered, witnesses=["seen"], stall_s=stall_s)


THIRD = blow("kill kafka-3", 30.0)


def of(*blows, faults=None):
    report = Report("hosts", 1, list(blows), audit("hosts", RunLog()))
    report.groups_per_s = {"without": 8.0, "with": 6.0}
    return account(report, Namespace(engine="simulated", faults=faults))


def test_stalls_are_told_by_broker_and_goodput_as_a_share():
    first = [blow("cut kafka-1", 9.96), blow("kill kafka-1", 4.0)]
    told = of(*first, blow("lossy kafka-2", 1.0), THIRD, blow("cut beam", 90.0))
    assert told["longest_stall_s"] == {"kafka-1": 10.0, "kafka-2": 1.0, "kafka-3": 30.0}
    assert told["goodput"]["with_over_without"] == 0.75
    assert told["brokers_not_hurt"] == []
    assert told["passed"]


@pytest.mark.parametrize("stall_s", [30.1, None])
def test_a_broker_that_holds_up_the_run_for_too_long_misses_the_bar(stall_s):
    told = of(blow("cut kafka-1", 1.0), blow("cut kafka-2", 1.0), blow("cut kafka-3", stall_s))
    assert told["brokers_not_hurt"] == []
    assert not told["passed"]


def test_a_broker_that_was_not_hurt_has_not_passed():
    impossible = blow("cut kafka-1", None)
    impossible.not_possible = "nobody uses this link now"
    told = of(impossible, blow("cut kafka-2", 1.0), THIRD)
    assert told["brokers_not_hurt"] == ["kafka-1"]
    assert not told["passed"]


def test_of_faults_that_are_asked_for_by_name_only_their_brokers_count():
    asked = ["cut kafka-2 beam", "kill learner"]
    assert of(blow("cut kafka-2 beam", 1.0), blow("kill learner", 90.0), faults=asked)["passed"]
    told = of(blow("kill learner", 90.0), faults=asked)
    assert told["brokers_not_hurt"] == ["kafka-2"]
    assert not told["passed"]


def test_every_broker_has_faults_of_its_own():
    about = [broker_of(fault) for fault in HOST_FAULTS]
    assert {about.count(name) for name in ("kafka-1", "kafka-2", "kafka-3")} == {6}
    assert about.count(None) == len(HOST_FAULTS) - 18


class Wire:
    """Hosts that note what is done to them; packets come when there is a reason to look."""

    def __init__(self):
        self.done, self._packets = [], 0

    def __getattr__(self, name):
        return lambda *where, **_: self.done.append((name, *where))

    def counts(self, *_):
        self._packets += 1
        return {"passed": self._packets, "lost": self._packets}

    def address(self, name):
        return "127.0.0.1"


class Waiting:
    """A scene in which nothing comes true by itself."""

    def __init__(self, hosts):
        self.stack = Namespace(hosts=hosts)

    def until(self, condition, timeout_s=None):
        yield from () if condition() else [None]

    def pause(self, seconds):
        yield


def test_a_link_is_healed_when_a_drill_ends_within_a_fault():
    hosts = Wire()
    strike = hurt(cut, ("kafka-1", "beam"), 10.0, Waiting(hosts), blow("cut kafka-1 beam", None))
    next(strike)
    assert hosts.done == [("cut", "kafka-1", "beam")]
    strike.close()
    assert hosts.done[1:] == [("heal", "kafka-1", "beam")]


def test_links_are_healed_before_the_log_is_served_again(monkeypatch, tmp_path):
    hosts = Wire()

    class Told:
        def start(self, *specs):
            hosts.done.append(("start",))

        def wait_ready(self, *names):
            raise TimeoutError

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(cluster, "Supervisor", lambda *_: Told())
    monkeypatch.setattr(cluster.Broker, "spec", lambda *_: None)
    stack = cluster.Cluster(RunConfig(name="hosts"), hosts=hosts, runs=tmp_path)
    monkeypatch.setattr(stack, "_on", lambda host, spec: spec)
    with suppress(TimeoutError), stack.served():
        pass
    assert hosts.done == [("heal",), ("start",)]
