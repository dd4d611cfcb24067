"""The account of a drill: red for every single thing that must not be."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.audit import audit
from pipelines.drill.report import Report, rows_of, show
from pipelines.drill.run import stall_ends
from pipelines.drill.scene import Blow
from pipelines.log import RunLog

AT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def blow(fault="kill learner", seconds=3.0):
    over = AT + timedelta(seconds=1)
    return Blow(fault, AT, over, over, over + timedelta(seconds=seconds), ["seen"])


@pytest.fixture
def report():
    return Report(
        "drill", 1, [blow(), blow(seconds=9.0), blow("stop worker")], audit("drill", RunLog()), replay_equal=True
    )


def test_a_drill_without_findings_is_green(report):
    assert report.ok


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report: report.blows[0].missing.append("no witness"),
        lambda report: report.blows[0].counts.update(lost=1),
        lambda report: report.torn.append("weights/3"),
        lambda report: report.bad_weight_loads.append("version 3"),
        lambda report: report.defaulted_rewards.append("sample"),
        lambda report: setattr(report, "repeated", 1),
        lambda report: setattr(report, "ended", "early"),
        lambda report: setattr(report, "replay_equal", False),
        lambda report: setattr(report, "verdict", None),
        lambda report: setattr(report, "verdict", report.verdict.model_copy(update={"duplicate": 1, "ok": False})),
        lambda report: report.blows.clear(),
    ],
)
def test_each_finding_makes_it_red(report, spoil):
    spoil(report)
    assert not report.ok


def test_a_fault_that_could_not_be_tried_is_told_and_counts_for_nothing(report):
    report.blows.append(Blow("full weights", AT, not_possible="mounting is not allowed here"))
    assert report.ok
    assert len(report.struck) == 3
    row = next(row for row in rows_of(report.blows) if row.fault == "full weights")
    assert (row.times, row.not_possible) == (0, "mounting is not allowed here")


def test_rows_give_the_median_and_the_most(report):
    row = rows_of(report.blows)[0]
    assert (row.fault, row.times, row.detect_s, row.recover_s) == ("kill learner", 2, (1.0, 1.0), (6.0, 9.0))


def test_it_is_json_and_a_table(report, capsys):
    assert json.loads(json.dumps(report.to_json()))["faults_struck"] == 3
    show(report)
    assert "every count is 0" in capsys.readouterr().out


def test_a_stall_may_be_until_the_next_fault_begins():
    def at(second):
        return AT + timedelta(seconds=second)

    def struck(began, recovered):
        return Blow("kill learner", at(began), recovered_at=None if recovered is None else at(recovered))

    beside, late, lost, last = struck(5, 10), struck(12, 20), struck(30, None), struck(220, 225)
    found = list(stall_ends([struck(0, 9), beside, late, lost, last], at(240)))
    assert [end for _, end in found] == [at(12), at(12), at(30), at(240)]
    assert [blow for blow, _ in found][1:] == [beside, late, last]
    assert list(stall_ends([last], at(200))) == [(last, at(225))]
