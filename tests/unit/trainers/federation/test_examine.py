"""What keeps a coordinator from waiting for one site's files, and what noise allows."""

import pytest

from schemas.federating import FederationConfig
from schemas.federation import CoordinatorStart, SiteUpdate
from trainers.federation.examine import Candidate, Examiner, LeftOut
from trainers.federation.layout import Layout
from trainers.federation.state import State

LAYOUT = Layout({"w": (3,)})


def update(site="north", sequence=1, base=1):
    return SiteUpdate(site=site, sequence=sequence, base_version=base, samples=1, tokens=1, steps=1, bytes=1,
                      manifest_sha256="ab" * 32)  # fmt: skip


@pytest.fixture
def state():
    found = State(remembered=2)
    found.take(CoordinatorStart(generation=1, version=1, strategy="fedavg"))
    return found


@pytest.fixture
def examiner(tmp_path):
    def make(**changes):
        return Examiner(FederationConfig(store=str(tmp_path), **changes), LAYOUT)

    return make


def test_files_that_cannot_be_opened_are_left_out_while_the_store_answers(tmp_path, examiner, monkeypatch):
    looks = examiner()

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trainers.federation.updates.read", fails)
    with pytest.raises(OSError, match="Input/output error"):
        looks.numbers(update())
    (tmp_path / "weights").mkdir()
    with pytest.raises(LeftOut, match="its files cannot be opened") as raised:
        looks.numbers(update())
    assert raised.value.reason == "bad_manifest"


def test_with_noise_a_site_is_part_of_a_merge_once(examiner, state):
    private = {"asynchronous": True, "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0},
               "strategy": {"weigh_by": "equal"}}  # fmt: skip
    value = update(sequence=2).encode()
    assert examiner(asynchronous=True).announced(value, state, {"north"}).sequence == 2
    with pytest.raises(LeftOut, match="one update of a site in a merge"):
        examiner(**private).announced(value, state, {"north"})


def test_the_middle_is_asked_only_where_there_are_three(examiner, state):
    looks = examiner(checks={"max_times_median": 5.0})
    candidates = [Candidate(update(f"s{number}"), number, norm, 0) for number, norm in enumerate((1.0, 2.0, 11.0))]
    assert looks.outliers(candidates, state) == {2}
    assert looks.outliers(candidates[1:], state) == set()


def test_in_an_asynchronous_federation_the_usual_is_what_was_merged(examiner, state):
    looks = examiner(asynchronous=True, checks={"max_times_median": 5.0})
    candidate = Candidate(update(), 0, 11.0, 0)
    assert looks.outliers([candidate], state) == set()
    state.norms.extend([1.0, 2.0, 2.0])
    assert looks.outliers([candidate], state) == {0}


def test_a_base_that_never_was_is_old(examiner, state):
    with pytest.raises(LeftOut, match=r"from version 9, the present one is 1") as raised:
        examiner(asynchronous=True).announced(update(base=9).encode(), state, ())
    assert raised.value.reason == "old_base"
