"""The coordinator on a real broker: what comes of rounds, of bad updates, of two of its kind."""

import json
from urllib.request import urlopen

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.local.ports import free_ports
from schemas.errors import FencedError
from schemas.federation import Merge, decode_rounds_entry
from trainers.federation.bases import Bases
from trainers.federation.layout import Layout
from trainers.federation.privacy import spent
from trainers.log import read_topic

NAMES = ("east", "north", "south", "west")


def entries(config):
    return [decode_rounds_entry(record.value) for record in read_topic(config, config.topics.rounds)]


def merges(config):
    return [entry for entry in entries(config) if isinstance(entry, Merge)]


def reasons(config):
    return {left.site: left.reason for merge in merges(config) for left in merge.left_out}


def test_a_round_is_the_mean_by_samples_of_what_sites_send(configure, lead, play):
    (port,) = free_ports(1)
    config = configure(rounds=2, quorum=4, metrics_port=port)
    sites = play(config)
    sites.beat()
    leading = lead(config)
    for version in (1, 2):
        before = sites.await_version(version).copy()
        order = sites.await_order(version)
        assert set(order.sites) == set(NAMES)
        deltas = [np.arange(12, dtype=np.float32) * (number + version) for number in range(4)]
        for number, name in enumerate(NAMES):
            sites.send(name, deltas[number], samples=number + 1)
        expected = before + sum(delta * (number + 1) / 10 for number, delta in enumerate(deltas))
        np.testing.assert_allclose(sites.await_version(version + 1), expected, rtol=1e-6)
    counts = leading.end()
    assert (counts["merges"], counts["merged"], counts["left_out"]) == (2, 8, {})
    assert [each.weight for each in merges(config)[0].merged] == [0.1, 0.2, 0.3, 0.4]
    served = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode().splitlines()
    for figure in ("version 3.0", "updates_merged_total 8.0", "sites 4.0", "sites_asked 4.0", "updates_waiting 0.0",
                   "rounds_missed_total 0.0", "merge_seconds_count 2.0"):  # fmt: skip
        assert f"asyncflow_federation_{figure}" in served


def test_what_is_published_is_a_version_as_a_learner_writes_it(configure, lead, play, tmp_path):
    config = configure(rounds=1, quorum=1)
    leading, sites = lead(config), play(config, ["only"])
    sites.obey(sites.await_order())
    leading.end()
    directory = tmp_path / "store" / "weights" / "00000002"
    facts = json.loads((directory / "MANIFEST.json").read_text())["facts"]
    assert (facts["kind"], facts["version"], facts["dtype"]) == ("weights", 2, "float32")
    assert {name: tensor.shape for name, tensor in load_file(directory / "model.safetensors").items()} == {
        "w": (5, 2), "b": (2,)}  # fmt: skip
    assert not list((tmp_path / "store" / "updates").glob("*/*")), "files of merged updates are removed"


BAD = ("flipped", "forger", "huge", "infinite", "lost", "odd")


@pytest.fixture
def signed(configure, monkeypatch):
    """A configuration whose sites have keys."""

    def make(names, **changes):
        for name in names:
            monkeypatch.setenv(f"KEY_{name.upper()}", f"secret of {name}")
        members = {name: {"key": f"{{env:KEY_{name.upper()}}}"} for name in names}
        return configure(sites=members, **changes)

    return make


def spoil(sites, row):
    """What bad sites send."""
    sites.send("infinite", row * np.float32(np.inf))
    sites.send("huge", row * np.float32(1e4))
    flipped = sites.send("flipped", row, announce=False)
    file = sites.directory(flipped) / "update.safetensors"
    value = bytearray(file.read_bytes())
    value[-3] ^= 4
    file.write_bytes(value)
    sites.announce(flipped)
    lost = sites.send("lost", row, announce=False)
    (sites.directory(lost) / "MANIFEST.json").unlink()
    sites.announce(lost)
    layout, sites.layout = sites.layout, Layout({"w": (2, 5), "b": (2,)})
    sites.send("odd", row)
    sites.layout = layout
    honest = sites.send("forger", row, announce=False)
    sites.announce(honest.model_copy(update={"samples": 10**9}))
    sites.announce(honest.model_copy(update={"site": "stranger"}))
    sites.announce(b"{rubbish")


def test_every_bad_update_is_left_out_with_its_reason(signed, lead, play):
    config = signed([*NAMES, *BAD], rounds=1, quorum=4, deadline_s=2.0)
    sites = play(config, [*NAMES, *BAD])
    sites.beat()
    leading = lead(config)
    before = sites.await_version(1).copy()
    assert set(sites.await_order().sites) == {*NAMES, *BAD}
    row = np.ones(12, dtype=np.float32)
    spoil(sites, row)
    sites.announce(sites.send("east", row))
    for name in NAMES[1:]:
        sites.send(name, row)
    counts = leading.end()
    assert reasons(config) == {
        "infinite": "nonfinite", "huge": "too_large", "flipped": "bad_manifest", "lost": "bad_manifest",
        "odd": "wrong_shape", "forger": "silent", "stranger": "unknown_site", "": "bad_manifest", "east": "duplicate",
    }  # fmt: skip
    assert counts["left_out"]["forged"] == 1, "and what somebody said in the forger's name is not the forger's"
    np.testing.assert_allclose(sites.await_version(2), before + 1, rtol=1e-6)


def test_a_site_that_is_late_or_old_or_was_not_asked_is_left_out(configure, lead, play):
    config = configure(rounds=3, quorum=2, deadline_s=1.0, selection={"gone_after_s": 3600})
    sites = play(config, NAMES)
    sites.alive = ["east", "north", "south"]
    sites.beat()
    leading = lead(config)
    row = np.ones(12, dtype=np.float32)
    sites.await_version(1)
    assert set(sites.await_order().sites) == {"east", "north", "south"}
    sites.send("west", row)
    for version in (1, 2, 3):
        for name in ("east", "north"):
            sites.send(name, row)
        if version < 3:
            sites.await_version(version + 1)
            sites.await_order(version + 1)
            sites.send("south", row, base_version=1)
    leading.end()
    assert [[(left.site, left.reason) for left in merge.left_out] for merge in merges(config)] == [
        [("west", "not_selected"), ("south", "silent")],
        [("south", "late"), ("south", "silent")],
        [("south", "old_base"), ("south", "silent")],
    ]


def test_a_round_without_a_quorum_is_asked_for_again_and_what_came_counts(configure, lead, play):
    config = configure(rounds=1, quorum=2, deadline_s=1.0)
    sites = play(config, ["east", "north"])
    sites.beat()
    leading = lead(config)
    before = sites.await_version(1).copy()
    sites.await_order()
    sites.send("east", np.ones(12))
    order = sites.await_order(after_round=1)
    assert (order.base_version, order.again) == (1, ())
    sites.send("north", np.full(12, 3.0))
    leading.end()
    np.testing.assert_allclose(sites.await_version(2), before + 2, rtol=1e-6)


def test_a_second_coordinator_fences_the_first(configure, lead, play):
    config = configure(rounds=2, quorum=2)
    first = lead(config)
    sites = play(config, ["east", "north"])
    order = sites.await_order()
    second = lead(config)
    sites.wait_until(lambda: len(read_topic(config, config.topics.rounds)) >= 3)
    sites.obey(order)
    sites.obey(sites.await_order(after_round=order.round))  # the first may have written version 2 before it was told
    counts = second.end()
    assert (counts["merges"], counts["generations"]) == (2, 2)
    with pytest.raises(FencedError, match="a newer coordinator leads"):
        first.end()


def test_updates_that_come_by_themselves_are_weighed_by_their_age(configure, lead, play):
    config = configure(asynchronous=True, buffer=2, rounds=2, max_staleness=1,
                       strategy={"name": "fedbuff", "weigh_by": "equal"})  # fmt: skip
    leading, sites = lead(config), play(config, ["east", "north"])
    row = np.ones(12, dtype=np.float32)
    before = sites.await_version(1).copy()
    sites.send("east", row)
    sites.send("north", row)
    np.testing.assert_allclose(sites.await_version(2), before + 1, rtol=1e-6)
    sites.send("east", row, base_version=1)
    sites.send("north", row)
    leading.end()
    np.testing.assert_allclose(sites.await_version(3), before + 1 + (1 / np.sqrt(2) + 1) / 2, rtol=1e-6)
    assert [each.staleness for each in merges(config)[1].merged] == [1, 0]


def test_fedasync_mixes_the_weights_of_a_site_into_the_present_ones(configure, lead, play):
    """x = (1 - a s) x + a s (x_1 + delta), with a = 0.5 and s = (1 + 1)^-0.5 the second time."""
    config = configure(asynchronous=True, rounds=2, max_staleness=2, keep=3,
                       strategy={"name": "fedasync", "arguments": {"alpha": 0.5}})  # fmt: skip
    leading, sites = lead(config), play(config, ["east", "north"])
    first = sites.await_version(1).copy()
    sites.send("east", np.full(12, 2.0))
    second = sites.await_version(2).copy()
    np.testing.assert_allclose(second, first + 1, rtol=1e-6)
    sites.send("north", np.full(12, 4.0), base_version=1)
    leading.end()
    share = 0.5 / np.sqrt(2)
    np.testing.assert_allclose(sites.await_version(3), (1 - share) * second + share * (first + 4), rtol=1e-5)


def test_the_servers_optimizer_goes_on_after_a_restart(configure, lead, play):
    options = {"strategy": {"name": "fedavgm", "arguments": {"momentum": 0.5}}, "quorum": 1}
    config = configure(rounds=1, **options)
    leading, sites = lead(config), play(config, ["only"])
    before = sites.await_version(1).copy()
    sites.await_order()
    sites.send("only", np.ones(12))
    leading.end()
    leading = lead(config.model_copy(update={"rounds": 2}))
    sites.await_version(2)
    sites.await_order(2)
    sites.send("only", np.ones(12))
    leading.end()
    np.testing.assert_allclose(sites.await_version(3), before + 1 + 1.5, rtol=1e-6)


def test_noise_is_added_and_its_budget_ends_the_federation(configure, lead, play):
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "max_epsilon": 5.0}
    config = configure(privacy=private, strategy={"weigh_by": "equal"})
    leading, sites = lead(config), play(config, ["east", "north"])
    before = sites.await_version(1).copy()
    sites.play(lambda _: not leading.thread.is_alive(), beat_s=0.5)
    counts = leading.end()
    budgets = [merge.metrics["epsilon"] for merge in merges(config)]
    assert budgets == [spent(2.0, times + 1, 1e-5) for times in range(counts["merges"])]
    assert budgets[-1] <= 5.0 < spent(2.0, counts["merges"] + 1, 1e-5)
    moved = np.linalg.norm(sites.await_version(counts["versions"]) - before)
    assert moved > 0.1, "updates of norm 0.003 move the weights by no more than their noise"
    assert not merges(config)[0].left_out
    assert isinstance(entries(config)[-1], Merge), "no order that nobody answers"


def test_after_the_last_merge_nothing_is_ordered(configure, lead, play):
    config = configure(rounds=1, quorum=1, deadline_s=1.0)
    sites = play(config, ["east", "north"])
    sites.beat()
    leading = lead(config)
    sites.await_version(1)
    sites.await_order()
    sites.send("east", np.ones(12))
    leading.end()
    assert isinstance(entries(config)[-1], Merge)


def test_a_base_that_cannot_be_read_for_a_moment_is_waited_for(configure, lead, play, monkeypatch):
    config = configure(asynchronous=True, rounds=2, max_staleness=2, keep=3, strategy={"name": "fedasync"})
    monkeypatch.setattr("trainers.federation.coordinator._PAUSE_S", 0.0)
    leading, sites = lead(config), play(config, ["east"])
    sites.await_version(1)
    read, failures = Bases.require, iter([OSError(5, "Input/output error")])

    def fails_once(bases, update):
        for error in failures:
            raise error
        read(bases, update)

    monkeypatch.setattr(Bases, "require", fails_once)
    sites.send("east", np.ones(12))
    sites.await_version(2)
    sites.send("east", np.ones(12), base_version=1)
    assert leading.end()["merged"] == 2


def test_a_coordinator_that_starts_removes_what_was_left_before(configure, lead, play, tmp_path):
    config = configure(rounds=1, quorum=1)
    leading, sites = lead(config), play(config, ["only"])
    sites.await_version(1)
    sites.await_order()
    sites.send("only", np.ones(12))
    leading.end()
    left = tmp_path / "store" / "updates" / "only" / "00000001"
    left.mkdir()
    lead(config).end()
    assert not left.exists()
