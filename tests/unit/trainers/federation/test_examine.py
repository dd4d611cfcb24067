"""What keeps a coordinator from waiting for one site's files, and what noise allows."""

import os

import numpy as np
import pytest

from schemas.federating import FederationConfig
from schemas.federation import Merge, MergedUpdate, SiteUpdate
from trainers.federation.examine import Candidate, Examiner, LeftOut
from trainers.federation.layout import Layout

LAYOUT = Layout({"w": (3,)})


def update(site="north", sequence=1, base=1):
    return SiteUpdate(site=site, sequence=sequence, base_version=base, samples=1, tokens=1, steps=1, bytes=1,
                      manifest_sha256="ab" * 32)  # fmt: skip


@pytest.fixture
def examiner(tmp_path):
    def make(**changes):
        return Examiner(FederationConfig(store=str(tmp_path), **changes), LAYOUT)

    return make


class Reads:
    """Stands in for the reading of files: fails so many times."""

    def __init__(self, error, times):
        self.error, self.left, self.tries = error, times, 0

    def __call__(self, *_):
        self.tries += 1
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return np.ones(3, dtype=np.float32)


@pytest.fixture
def failing(monkeypatch):
    def make(error, times):
        reads = Reads(error, times)
        monkeypatch.setattr("trainers.federation.updates.read", reads)
        monkeypatch.setattr("trainers.federation.examine._PAUSE_S", 0.0)
        return reads

    return make


IO_ERROR = OSError(5, "Input/output error")


def test_files_that_cannot_be_opened_are_left_out_while_the_store_answers(tmp_path, examiner, failing):
    looks, reads = examiner(), failing(IO_ERROR, 99)
    with pytest.raises(OSError, match="Input/output error"):
        looks.numbers(update())
    (tmp_path / "weights").mkdir()
    with pytest.raises(LeftOut, match="its files cannot be opened") as raised:
        looks.numbers(update())
    assert (raised.value.reason, reads.tries) == ("bad_manifest", 1 + 3)


def test_a_store_that_fails_once_costs_nobody_an_update(tmp_path, examiner, failing):
    (tmp_path / "weights").mkdir()
    failing(IO_ERROR, 2)
    assert examiner().numbers(update())[0].tolist() == [1, 1, 1]


def test_what_a_stores_library_raises_is_as_good_as_an_oserror(tmp_path, examiner, failing):
    (tmp_path / "weights").mkdir()
    unreachable = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    failing(unreachable("nobody there"), 99)
    with pytest.raises(LeftOut, match="nobody there"):
        examiner().numbers(update())


def test_a_programming_error_is_nobodys_bad_update(tmp_path, examiner, failing):
    (tmp_path / "weights").mkdir()
    failing(ZeroDivisionError("oops"), 99)
    with pytest.raises(ZeroDivisionError):
        examiner().numbers(update())


def a_loop(manifest):
    manifest.symlink_to(manifest)


def a_directory(manifest):
    manifest.mkdir()


def a_pipe(manifest):
    os.mkfifo(manifest)


def in_a_file(manifest):
    manifest.parent.rmdir()
    manifest.parent.write_bytes(b"")


@pytest.mark.parametrize("make", [a_loop, a_directory, a_pipe, in_a_file])
def test_no_site_keeps_the_others_waiting(tmp_path, examiner, make, monkeypatch):
    def slept(_):
        raise AssertionError("waits for what no second look changes")

    monkeypatch.setattr("trainers.federation.examine.time.sleep", slept)
    (tmp_path / "weights").mkdir()
    manifest = tmp_path / "updates" / "north" / "00000001" / "MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    make(manifest)
    with pytest.raises(LeftOut) as raised:
        examiner().numbers(update())
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


def test_where_the_middle_is_zero_nobody_is_too_large(examiner, state):
    looks = examiner(checks={"max_times_median": 5.0})
    candidates = [Candidate(update(f"s{number}"), number, norm, 0) for number, norm in enumerate((0.0, 0.0, 1.0))]
    assert looks.outliers(candidates, state) == set()


def test_with_noise_nobody_is_measured_by_the_others(examiner, state):
    looks = examiner(checks={"max_times_median": 5.0}, privacy={"clip_norm": 1.0, "noise_multiplier": 1.0},
                     strategy={"weigh_by": "equal"})  # fmt: skip
    candidates = [Candidate(update(f"s{number}"), number, norm, 0) for number, norm in enumerate((1.0, 1.0, 99.0))]
    assert looks.outliers(candidates, state) == set()


def entry(version, *merged, left_out=()):
    parts = [MergedUpdate(site=site, sequence=version, at=10 * version + number, samples=1, weight=1, norm=norm)
             for number, (site, norm) in enumerate(merged)]  # fmt: skip
    return Merge(generation=1, base_version=version - 1, version=version, strategy="fedbuff", merged=parts,
                 left_out=left_out, position=10 * version + 9)  # fmt: skip


def test_in_an_asynchronous_federation_the_usual_is_what_sites_sent_last(examiner, state):
    looks = examiner(asynchronous=True, checks={"max_times_median": 5.0})
    candidate = Candidate(update(), 0, 11.0, 0)
    assert looks.outliers([candidate], state) == set()
    state.take(entry(2, ("east", 1.0), ("south", 2.0), ("west", 2.0)))
    assert looks.outliers([candidate], state) == {0}


def test_no_site_says_what_is_usual_however_much_it_sends(examiner, state):
    looks = examiner(asynchronous=True, checks={"max_times_median": 5.0})
    state.take(entry(2, ("east", 1.0), ("north", 1.0)))
    for version in range(3, 60):
        state.take(entry(version, ("liar", 1e-9)))
    assert looks.outliers([Candidate(update(), 0, 2.0, 0)], state) == set()


def test_what_is_usual_may_change_for_all(examiner, state):
    looks = examiner(asynchronous=True, checks={"max_times_median": 5.0})
    state.take(entry(2, ("east", 1.0), ("north", 1.0), ("south", 1.0)))
    for version, site in enumerate(("east", "north"), start=3):
        candidate = Candidate(update(site, sequence=9), 40, 100.0, 0)
        assert looks.outliers([candidate], state) == {40}
        state.take(entry(version, left_out=[candidate.left_out("too_large")]))
    assert looks.outliers([Candidate(update("south"), 0, 100.0, 0)], state) == set()


def test_no_more_norms_are_kept_than_are_asked_for(state):
    for number in range(200):
        state.note_norm(f"s{number}", 1.0)
    state.note_norm("s150", 2.0)
    assert (len(state.norms), list(state.norms)[-1]) == (50, "s150")


def test_a_base_that_never_was_is_old(examiner, state):
    with pytest.raises(LeftOut, match=r"from version 9, the present one is 1") as raised:
        examiner(asynchronous=True).announced(update(base=9).encode(), state, ())
    assert raised.value.reason == "old_base"
