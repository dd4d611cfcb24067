"""The audit of a federation: a log as it should be, and every promise broken in turn."""

import pytest

from pipelines.federation.audit import Announced, check
from schemas.federation import (
    CoordinatorStart,
    LeftOutUpdate,
    Merge,
    MergedUpdate,
    Order,
    RoundOrder,
    SiteUpdate,
)
from schemas.records import now
from schemas.weights import WeightVersion

SHA = "ab" * 32


def update(at, site, sequence, base=1):
    told = {"samples": 1, "tokens": 1, "steps": 1, "bytes": 1, "manifest_sha256": SHA}
    return Announced(at, SiteUpdate(site=site, sequence=sequence, base_version=base, **told))


def merged(at, site, sequence):
    return MergedUpdate(site=site, sequence=sequence, at=at, samples=1, weight=0.5, norm=1.0)


def left(at, site, sequence, reason):
    return LeftOutUpdate(site=site, sequence=sequence, at=at, reason=reason)


def order(number, base, *sites):
    return RoundOrder(generation=1, round=number, base_version=base, sites={site: Order(steps=1) for site in sites},
                      quorum=1, deadline_at=now())  # fmt: skip


def merge(number, base, version, position, *fates, generation=1):
    return Merge(generation=generation, round=number, base_version=base, version=version, strategy="fedavg",
                 merged=[each for each in fates if isinstance(each, MergedUpdate)],
                 left_out=[each for each in fates if isinstance(each, LeftOutUpdate)], position=position)  # fmt: skip


def version(number):
    return WeightVersion(version=number, step=0, generation=1, manifest_sha256=SHA, dtype="float32", base_model="m")


@pytest.fixture
def log():
    """Entries, versions and announcements that keep all promises."""
    entries = [
        CoordinatorStart(generation=1, version=1, strategy="fedavg"),
        order(1, 1, "a", "b", "c"),
        merge(1, 1, 2, 3, merged(0, "a", 1), left(1, "a", 1, "duplicate"), merged(2, "b", 1),
              LeftOutUpdate(site="c", reason="silent")),
        order(2, 2, "a", "b", "c"),
        merge(2, 2, 4, 5, left(3, "", None, "bad_manifest"), merged(4, "a", 2)),
    ]  # fmt: skip
    announced = [update(0, "a", 1), update(1, "a", 1), update(2, "b", 1), Announced(3, None), update(4, "a", 2, 2),
                 update(5, "b", 2, 2)]  # fmt: skip
    return entries, [version(1), version(2), version(4)], announced


def test_a_log_that_keeps_all_promises(log):
    verdict = check(*log)
    assert verdict.faults == []
    assert verdict.tell() == {
        "holds": True, "versions": 3, "merges": 2, "updates": 6, "merged": 3,
        "left_out": {"bad_manifest": 1, "duplicate": 1, "silent": 1}, "waiting": 1, "generations": 1, "faults": [],
    }  # fmt: skip


BREAKS = {
    "an update without a fate": (lambda log: log[0].__setitem__(4, merge(2, 2, 4, 5, merged(4, "a", 2))),
                                 "version 4: the update at 3 has no fate: it is lost"),
    "two fates": (lambda log: log[0].__setitem__(4, merge(2, 2, 4, 5, left(3, "", None, "bad_manifest"),
                                                          merged(4, "a", 2), left(4, "a", 2, "late"))),
                  "version 4: the update at 4 has 2 fates"),
    "merged twice": (lambda log: (log[2].__setitem__(4, update(4, "a", 1)), log[0].__setitem__(
        4, merge(2, 2, 4, 5, left(3, "", None, "bad_manifest"), merged(4, "a", 1)))),
        "version 4: update 1 of a is in version 2 too"),
    "another update than said": (lambda log: log[2].__setitem__(2, update(2, "b", 9)),
                                 "version 2: at 2 lies ('b', 9), not b 1"),
    "not yet read": (lambda log: log[0].__setitem__(2, merge(1, 1, 2, 2, merged(0, "a", 1), merged(2, "b", 1),
                                                             left(1, "a", 1, "duplicate"))),
                     "version 2: 2 is no update that it has read"),
    "a gap in the line": (lambda log: log[0].__setitem__(4, merge(2, 1, 4, 5, left(3, "", None, "bad_manifest"),
                                                                  merged(4, "a", 2))),
                          "version 4 is based on 1, expected 2"),
    "an older coordinator": (lambda log: log[0].insert(2, CoordinatorStart(generation=2, version=1, strategy="x")),
                             "two coordinators at once"),
    "a version that nobody announced": (lambda log: log[1].pop(), "merges and announcements differ: versions [4]"),
    "an announcement of nothing": (lambda log: log[1].append(version(9)), "differ: versions [9]"),
    "a site that was not asked": (lambda log: log[0].__setitem__(1, order(1, 1, "b", "c")), "round 1 did not ask a"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_promise_is_told(log, name):
    spoil, said = BREAKS[name]
    spoil(log)
    assert any(said in fault for fault in check(*log).faults), check(*log).faults
