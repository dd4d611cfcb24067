"""A short fuzz run, and the proof that the runner notices what it looks for."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import broken
from tests.fuzz.cases import CASES
from tests.fuzz.records import RECORD_DAMAGE, valid_records
from tests.fuzz.run import kind_of, main, run

DRAWS = st.randoms(use_true_random=False)
SOME = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def test_some_thousand_damaged_records_find_nothing():
    # with this seed each kind fails once
    report = run(4000, seed=random.randrange(1 << 30))
    assert report.findings == [], report.table()
    assert report.cases == 4000
    assert set(report.outcomes) == set(CASES)
    assert all(outcomes.get("decoded") for kind, outcomes in report.outcomes.items() if kind.endswith("nodes"))


@pytest.mark.parametrize("kind", CASES)
@SOME
@given(draw=DRAWS)
def test_every_kind_of_damage_is_refused_or_harmless(kind, draw):
    CASES[kind](draw)  # what is found here is shrunk by hypothesis


def test_damage_begins_with_records_that_are_read():
    from schemas.trajectories import decode

    assert len(valid_records()) > 10
    assert all(decode(*record) for record in valid_records())
    assert all(len(damage(random.Random(0))) == 2 for damage in RECORD_DAMAGE.values())


def test_a_broken_decoder_is_found_by_its_case_and_the_run_goes_on():
    kinds = list(broken.CASES)
    # with this seed each kind fails once
    report = run(40, seed=25, module="tests.fuzz.broken", hang_s=4)  # a gibibyte takes a busy machine over a second
    assert report.cases == 40
    told = {kind: {f["what"] for f in report.findings if f["case"].split("/")[1] == kind} for kind in kinds}
    assert told["dies"] == {"died with exit code -11"}
    assert told["hangs"] == {"stood still for 4 s"}
    assert told["raises"] == {"ZeroDivisionError: integer division or modulo by zero"}
    assert any("memory grew by" in what for what in told["grows"])
    seed, kind, number = next(f["case"] for f in report.findings if "ZeroDivision" in f["what"]).split("/")
    assert kind == kind_of(int(number), kinds)
    with pytest.raises(ZeroDivisionError):
        broken.CASES[kind](random.Random(f"{seed}/{kind}/{number}"))


def test_the_command_prints_a_table_and_runs_one_case_again(capsys, tmp_path):
    assert main(["--cases", "40", "--processes", "1", "--json", str(tmp_path / "report.json")]) == 0
    assert "40 cases in" in capsys.readouterr().out
    assert '"findings": []' in (tmp_path / "report.json").read_text()
    assert main(["--only", "0/rollout id/3"]) == 0
    assert capsys.readouterr().out in ("decoded\n", "ValueError\n")
