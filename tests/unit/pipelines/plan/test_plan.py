"""``asyncflow plan`` on calibrations in files: what it prints, proposes and refuses."""

import json

import pytest

from pipelines.cli.main import main
from pipelines.plan import split
from pipelines.plan.calibration import Calibration, changed, load_calibration, save_calibration
from pipelines.plan.prediction import predict
from pipelines.plan.simulation import Shape
from pipelines.plan.split import enough_partitions, propose
from tests.support.cli import caller, refused

BALANCED = {
    "name": "made",
    "workload": {"response_tokens": [20, 100, 300], "prompt_tokens": 20, "group_size": 4, "groups_per_step": 32,
                 "max_staleness": 2},
    "engine": {"slots": 16, "step_s": 0.01, "sequence_s": 0.001},
    "learner": {"token_s": 5e-4, "fixed_s": 0.05, "min_ranks": 2},
    "sources": {"engine.step_s": "made up"},
}  # fmt: skip


@pytest.fixture
def asyncflow(capsys):
    return caller(capsys)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "made.toml"
    save_calibration(Calibration.model_validate(BALANCED), path)
    return path


def test_it_lists_what_it_reckons_with_and_a_line_a_prediction(asyncflow, file):
    done = asyncflow(
        "plan", "--calibration", file, "--workers", 1, 2, "--ranks", 2, "--steps", 6, "--gpu-hour-price", 3
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("engine.step_s" in line and "made up" in line for line in lines)
    assert any("gpu_hour_price" not in line and "workload.max_staleness" in line for line in lines)
    assert "predicted, not measured" in lines
    assert "3 GPUs cost" in done.stdout
    assert "4 GPUs cost" in done.stdout


def test_json_has_the_calibration_and_every_figure(asyncflow, file):
    done = asyncflow("plan", "--calibration", file, "--workers", 2, "--max-staleness", 0, "--steps", 6, "--json")
    told = json.loads(done.stdout)
    assert told["calibration"]["workload"]["max_staleness"] == 0
    assert told["calibration"]["sources"]["workload.max_staleness"] == "as given"
    (found,) = told["predicted"]
    assert found["ranks"] == 2, "as few as hold the model"
    assert (found["engines"], found["staleness_max"], found["cost_per_million_tokens"]) == (2, 0, None)
    assert told["measured"] is None


def test_a_table_for_a_page_and_a_batch_that_grows(asyncflow, file):
    arguments = ("--workers", 1, 3, "--scale-batch", "--steps", 6, "--format", "markdown")
    rows = asyncflow("plan", "--calibration", file, *arguments).stdout.splitlines()
    assert rows[0].startswith("| GPUs | engines |")
    assert [row.split(" | ")[4] for row in rows[2:]] == ["32", "96"]


def test_what_was_changed_is_saved(asyncflow, file, tmp_path):
    asyncflow(
        "plan", "--calibration", file, "--groups-per-step", 7, "--max-in-flight", 3, "--save", tmp_path / "new.toml"
    )
    found = load_calibration(tmp_path / "new.toml")
    assert (found.workload.groups_per_step, found.log.max_in_flight) == (7, 3)


def test_the_proposed_split_is_no_worse_than_any_other():
    calibration, gpus = Calibration.model_validate(BALANCED), 12
    proposed = propose(calibration, gpus, steps=60)
    assert (proposed.gpus, proposed.engines + proposed.ranks) == (gpus, gpus)
    rates = [
        predict(calibration, Shape(gpus - ranks, ranks, proposed.partitions), steps=60).tokens_per_s
        for ranks in range(2, gpus)
    ]
    assert proposed.tokens_per_s > 0.95 * max(rates)


def test_a_part_of_a_large_shape_is_as_short_of_places_as_the_whole():
    whole = changed(Calibration.model_validate(BALANCED), {"workload.groups_per_step": 128, "log.max_in_flight": 64})
    shape = Shape(engines=128, ranks=16, partitions=8)
    tried = split._try(whole, shape, seed=0)
    found = predict(whole, shape, steps=6)
    unbound = predict(changed(whole, {"log.max_in_flight": None}), shape, steps=6)
    assert found.tokens_per_s < 0.8 * unbound.tokens_per_s, "places bind"
    assert tried == pytest.approx(found.tokens_per_s / found.gpus, rel=0.1)


def test_partitions_grow_with_the_tokens():
    calibration = Calibration.model_validate(BALANCED)
    assert enough_partitions(calibration, 1) == 2
    assert enough_partitions(calibration, 10_000) > 10


def test_bad_arguments_are_told(asyncflow, file, tmp_path):
    assert refused(asyncflow("plan"), "exactly one of --run RUN and --calibration FILE")
    assert refused(asyncflow("plan", "--calibration", tmp_path / "none.toml"), "none.toml", "--save FILE")
    assert refused(asyncflow("plan", "--calibration", file, "--gpus", 4, "--workers", 2), "not both")
    assert refused(asyncflow("plan", "--calibration", file, "--workers", 0), "--workers 0: expected 1 or more")
    assert refused(
        asyncflow("plan", "--calibration", file, "--workers", 2, "--partitions", 0), "--partitions 0: expected"
    )
    assert refused(
        asyncflow("plan", "--calibration", file, "--workers", 2, "--ranks", 0), "--ranks 0: expected 1 or more"
    )
    assert refused(asyncflow("plan", "--calibration", file, "--workers", 2, "--ranks", 1), "--ranks 1", "at least 2")
    assert refused(asyncflow("plan", "--calibration", file, "--gpus", 8, "--ranks", 2), "--ranks 2", "--workers")
    assert refused(
        asyncflow("plan", "--calibration", file, "--save", tmp_path / "no" / "x.toml"), "--save", "No such file"
    )
    assert refused(asyncflow("plan", "--calibration", file, "--max-staleness", -1), "workload.max_staleness = -1")
    assert refused(asyncflow("plan", "--calibration", file, "--gpus", 2), "2 GPUs are too few", "at least 2")
    assert refused(asyncflow("plan", "--calibration", file, "--format", "markdown"), "give --gpus or --workers")
    assert refused(asyncflow("plan", "--run", "nope", cwd=tmp_path), "no run 'nope'")
    wrong = file.read_text().replace("slots = 16", "slots = 2")
    file.write_text(wrong)
    assert refused(asyncflow("plan", "--calibration", file), "workload.group_size = 4 exceeds engine.slots = 2")
    file.write_text(wrong.replace("slots", "slotz"))
    assert refused(asyncflow("plan", "--calibration", file), "unknown key engine.slotz", "slots")


def test_quantiles_that_descend_are_told():
    tree = {**BALANCED, "workload": {"response_tokens": [3, 2]}}
    with pytest.raises(ValueError, match="from the shortest to the longest"):
        Calibration.model_validate(tree)


def test_it_needs_no_broker_for_a_file(file, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "kafka", None)
    assert main(["plan", "--calibration", str(file), "--workers", "1", "--steps", "2"]) == 0
    assert capsys.readouterr().out
