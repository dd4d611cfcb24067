"""What a site makes of the coordinator's topics, record by record."""

import os
from datetime import timedelta

import pytest

from pipelines.local.ports import free_ports
from schemas.errors import BrokerError
from schemas.federating import SiteConfig
from schemas.federation import CoordinatorStart, LeftOutUpdate, Merge, MergedUpdate, Order, RoundOrder
from schemas.records import now
from schemas.weights import WeightVersion
from trainers.federation.link import Heard, Link, with_entry, with_version

NORTH = "north"


def version(number):
    return WeightVersion(version=number, step=number, generation=1, manifest_sha256="ab" * 32, dtype="float32",
                         base_model="tiny")  # fmt: skip


def order(number, base, *sites, again=()):
    return RoundOrder(generation=1, round=number, base_version=base, sites={site: Order(steps=2) for site in sites},
                      again=again, quorum=1, deadline_at=now() + timedelta(minutes=1))  # fmt: skip


def merge(base, into, *, merged=(), left_out=()):
    parts = tuple(MergedUpdate(site=site, sequence=sequence, at=0, samples=1, weight=1.0, norm=1.0)
                  for site, sequence in merged)  # fmt: skip
    left = tuple(LeftOutUpdate(site=site, sequence=sequence, at=None if sequence is None else 0, reason=reason)
                 for site, sequence, reason in left_out)  # fmt: skip
    return Merge(generation=1, round=1, base_version=base, version=into, strategy="fedavg", merged=parts, left_out=left,
                 position=1)  # fmt: skip


def heard(*records):
    found = Heard()
    for record in records:
        is_version = isinstance(record, WeightVersion)
        found = with_version(found, record) if is_version else with_entry(found, record, NORTH)
    return found


def test_an_order_holds_while_its_version_is_the_newest():
    assert heard(order(1, 4, NORTH)).order_for(NORTH) is None, "the version was not heard of yet"
    open_ = heard(version(4), order(1, 4, NORTH, "south"))
    assert open_.order_for(NORTH)[1].steps == 2
    assert open_.order_for("east") is None
    assert heard(version(4), order(1, 4, NORTH), version(7)).order_for(NORTH) is None, "its round is over"


def test_versions_never_go_back():
    assert heard(version(4), version(7), version(5)).newest.version == 7


def test_fates_are_those_of_this_site_and_merged_counts_most():
    found = heard(
        merge(1, 2, left_out=[(NORTH, 1, "late"), ("south", 2, "late"), (NORTH, None, "silent")]),
        merge(2, 3, merged=[(NORTH, 2), ("south", 3)], left_out=[(NORTH, 2, "duplicate")]),
    )
    assert found.fates == {1: "late", 2: "merged"}
    assert with_entry(found, merge(3, 4, left_out=[(NORTH, 2, "duplicate")]), NORTH).fates[2] == "merged"


@pytest.mark.parametrize("reason", ["forged", "unknown_site"])
def test_what_somebody_else_announced_in_its_name_is_no_fate(reason):
    """A number beyond all that a site ever used would leave it no number for its own."""
    assert heard(merge(1, 2, left_out=[(NORTH, (1 << 63) - 1, reason)])).fates == {}


def test_only_the_newest_fates_are_kept():
    found = heard(*(merge(number, number + 1, merged=[(NORTH, number)]) for number in range(1, 200)))
    assert max(found.fates) == 199
    assert len(found.fates) <= 50


def test_the_newest_start_says_how_sites_go_on():
    starts = [CoordinatorStart(generation=g, version=1, strategy="fedavg", asynchronous=g == 1) for g in (1, 2)]
    assert not heard(*starts).start.asynchronous


def test_a_broker_that_is_away_costs_no_file_descriptors():
    """Who is tried every second for days must not: a client of kafka-python that cannot connect keeps four of them."""
    (port,) = free_ports(1)
    config = SiteConfig(name="f", site=NORTH, store="/nowhere", kafka={"bootstrap": f"127.0.0.1:{port}"})
    link = Link(config, lambda: None)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(BrokerError, match="nobody listens"):
            link._connect()
    link.close()
    assert len(os.listdir("/proc/self/fd")) < before + 10
