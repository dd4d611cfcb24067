"""The drill is green where the promises are kept, and red where one of the guards is taken out.

The engine is simulated: what is drilled here is the log. ``asyncflow drill`` itself runs on vLLM.
"""

import sys
from pathlib import Path

import pytest

from pipelines.drill import feed, watch
from pipelines.drill.report import show
from pipelines.drill.run import Plan, drill, drill_config
from pipelines.local import stack
from pipelines.local.supervisor import Spec

pytestmark = pytest.mark.timeout(600)
BROKEN = Path(__file__).parent / "broken_builds"


@pytest.fixture
def drilled(tmp_path, monkeypatch):
    """Drills a build; the name of a broken one puts its ``sitecustomize`` into every process of the stack."""

    def start(faults, build=None):
        path = [*([str(BROKEN / build)] if build else []), str(Path(__file__).parents[2])]
        monkeypatch.setenv("PYTHONPATH", ":".join(path))
        monkeypatch.setattr(stack.Stack, "_worker_spec", simulated_worker)
        monkeypatch.setattr(watch, "_AUDIT_PAUSE_S", 0.3)  # the log of these drills is short
        monkeypatch.setattr(feed, "_AHEAD", 20)
        plan = Plan(
            seed=1, minutes=0, times=1, faults=tuple(faults), baseline_s=0, config=config(), runs=tmp_path,
            patience_s=120 if build is None else 20, replays=build is None,
        )  # fmt: skip
        report = drill(plan)
        show(report)
        return report

    return start


def config():
    tree = drill_config("drill", 1)
    return tree.model_copy(update={"learner": tree.learner.model_copy(update={"checkpoint_every": 5})})


def simulated_worker(self):
    port = self.config.worker.port
    command = [sys.executable, "-m", "tests.support.drill_engine", "--port", str(port)]
    return Spec(
        stack.WORKER, command, stack.environment_of(stack.WORKER), ready=lambda: stack.accepts(port), restarts=100
    )


def test_the_real_build_loses_nothing_and_doubles_nothing(drilled):
    faults = ["copied record", "crash in_transaction", "crash record_sent", "crash after_manifest", "rotten checkpoint"]
    report = drilled(faults)
    assert report.ok, report.to_json()["counts"]
    assert len(report.struck) == len(faults)
    assert all(blow.witnesses for blow in report.struck)


def test_without_deduplication_a_copied_record_is_trained_twice(drilled):
    report = drilled(["copied record"], "without_deduplication")
    assert not report.ok
    assert report.counts["duplicate"] > 0


def test_without_transactions_half_a_step_and_doubled_groups_are_seen(drilled):
    report = drilled(["crash in_transaction", "crash record_sent"], "without_transactions")
    assert not report.ok
    assert report.counts["half_commits"] > 0
    assert report.counts["repeated"] > 0


def test_without_the_atomic_rename_a_torn_checkpoint_is_found(drilled):
    report = drilled(["crash after_manifest"], "without_atomic_rename")
    assert not report.ok
    assert report.counts["torn"] > 0


def test_without_the_manifest_check_a_rotten_checkpoint_goes_unnoticed(drilled):
    report = drilled(["rotten checkpoint"], "without_manifest_check")
    assert not report.ok
    assert report.counts["missing_witnesses"] > 0
