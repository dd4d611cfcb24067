"""What pages show of plans: the tables are those of docs/results, and the plan still predicts what stands there."""

import json

import pytest

from tests.benchmarks import plan
from tests.benchmarks.scale import GPUS, PAGE, RESULTS, TABLES, Table, linearity, page, run

FOUND = json.loads(RESULTS.read_text())


def test_the_tables_of_the_page_are_the_results():
    assert list(FOUND) == [table.name for table in TABLES]
    assert page(FOUND, PAGE.read_text()) == PAGE.read_text(), "make -s bench BENCH=scale"


def test_the_table_of_what_was_measured_is_the_result():
    found = json.loads(plan.RESULTS.read_text())
    assert plan.page(found, plan.PAGE.read_text()) == plan.PAGE.read_text()


@pytest.mark.parametrize("model", ["7b", "32b"])
def test_the_plan_predicts_it_again(model):
    """The first line of a table; the others are made by the same command. Rounding may be another elsewhere."""
    table = Table(model, 1, "fixed")
    (again,) = run(table.command(GPUS[:1]))
    assert again["tokens_per_s"] == pytest.approx(FOUND[table.name]["predicted"][0]["tokens_per_s"], rel=0.05)


def test_the_bar_is_on_the_larger_error():
    runs = [{"calibrates": False, "errors": {"samples_per_s": 0.02, "tokens_per_s": -0.11}},
            {"calibrates": True, "errors": {"samples_per_s": 0.5, "tokens_per_s": 0.5}}]  # fmt: skip
    assert [plan.largest(runs, rate) for rate in plan.RATES] == [0.02, 0.11]


def test_linearity_is_of_a_gpu():
    lines = [{"gpus": 32, "tokens_per_s": 10.0}, {"gpus": 512, "tokens_per_s": 80.0}]
    assert linearity(lines) == 0.5
