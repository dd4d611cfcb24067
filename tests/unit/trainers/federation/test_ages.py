"""How old weights are where a line goes on from other ones, as the learner counts it and as the audit does."""

import pytest

from pipelines.audit import Ages, audit
from pipelines.log import RunLog
from schemas.federation import SiteUpdate
from schemas.identity import GroupId
from schemas.ledger import AdoptEntry, Position, Settings, StartEntry, StepEntry, TrainedGroup, UpdateEntry
from schemas.weights import WeightVersion
from trainers.accounts import Versions

DIGEST = "ab" * 32
SETTINGS = Settings(max_staleness=1, groups_per_step=1)


def start(generation, at=None):
    continues = None if at is None else Position(generation=generation - 1, step=at)
    return StartEntry(generation=generation, continues=continues, settings=SETTINGS)


def step(generation, number, version, group=None):
    trained = TrainedGroup(group=GroupId(0, number if group is None else group), at=(0, number), attempt="a", samples=1,
                           versions=(1, 1))  # fmt: skip
    return StepEntry(generation=generation, step=number, version=version, trained=(trained,), dropped=())


def adopt(generation, number, version, global_version=1):
    return AdoptEntry(generation=generation, step=number, version=version, federation="f",
                      global_version=global_version,
                      manifest_sha256=DIGEST)  # fmt: skip


def update(generation, number, since, sequence, **more):
    written = SiteUpdate(site="north", sequence=sequence, base_version=1, samples=1, tokens=1, steps=number - since,
                         bytes=1, manifest_sha256=DIGEST, **more)  # fmt: skip
    return UpdateEntry(generation=generation, step=number, since=since, federation="f", update=written)


def announced(entries):
    """The weights of each entry that has some: version, step and generation."""
    given = [(each.version, each.step, each.generation) for each in entries if not isinstance(each, StartEntry)]
    return [WeightVersion(version=version, step=number, generation=generation, manifest_sha256=DIGEST, dtype="float32",
                          base_model="tiny") for version, number, generation in given]  # fmt: skip


def both(entries, weights):
    """Staleness by learner and by audit."""
    log = RunLog(ledger=entries, weights=weights)
    line = [entry for entry in entries if isinstance(entry, StepEntry)]
    versions = Versions({each.version: each.step for each in weights})
    versions.generations = {each.version: each.generation for each in weights}
    for entry in entries:
        versions.adopted.add(entry)
    ages = Ages.of(log, line, SETTINGS)
    return versions.staleness, ages.staleness


@pytest.mark.parametrize("counting", [0, 1])
def test_an_adoption_ages_what_was_there_before_it_by_one(counting):
    entries = [start(1), adopt(1, 0, 2), step(1, 1, 3), step(1, 2, 4), adopt(1, 2, 5), step(1, 3, 6)]
    staleness = both(entries, announced(entries))[counting]
    assert [staleness(version, 2) for version in (2, 3, 4, 5)] == [3, 2, 1, 0]
    assert [staleness(version, 3) for version in (4, 5, 6)] == [2, 1, 0]


@pytest.mark.parametrize("counting", [0, 1])
def test_what_is_done_again_after_another_adoption_is_no_older_than_before(counting):
    """Killed without a checkpoint after two steps: the next start adopts anew, and does both again."""
    before = [start(1), adopt(1, 0, 2), step(1, 1, 3), step(1, 2, 4)]
    entries = [*before, start(2, at=0), adopt(2, 0, 6)]
    staleness = both(entries, announced([*before[1:], adopt(2, 0, 6)]))[counting]
    assert (staleness(2, 0), staleness(6, 0)) == (0, 0)


@pytest.mark.parametrize("counting", [0, 1])
def test_weights_that_a_restart_announces_before_it_adopts_are_older_than_the_global_ones(counting):
    entries = [start(1), adopt(1, 0, 2), step(1, 1, 3), start(2, at=1), adopt(2, 1, 5)]
    weights = announced([*entries[1:3], adopt(2, 1, 5)])
    weights.insert(2, weights[-1].model_copy(update={"version": 4}))
    staleness = both(entries, weights)[counting]
    assert [staleness(version, 1) for version in (3, 4, 5)] == [1, 1, 0]


def test_adoptions_are_counted_in_the_order_of_the_log():
    entries = [start(1), *(adopt(1, number, number + 2) for number in range(5))]
    staleness = both(entries, announced(entries))[0]
    assert [staleness(version, 4) for version in range(2, 7)] == [8, 6, 4, 2, 0]


def faults(*entries):
    return [fault for fault in audit("north", RunLog(ledger=list(entries))).faults if fault.startswith("contributed")]


def test_a_group_in_two_updates_is_found_also_across_lines():
    line = [start(1), adopt(1, 0, 2), step(1, 1, 3), step(1, 2, 4), update(1, 2, 0, 1)]
    assert not faults(*line)
    assert not faults(*line, adopt(1, 2, 5), step(1, 3, 6), update(1, 3, 2, 2))
    assert "is in updates 1 of north for f and 2 of north for f" in faults(*line, update(1, 2, 1, 2))[0]
    again = [start(2, at=0), adopt(2, 0, 6), step(2, 1, 7), update(2, 1, 0, 2)]
    assert "is in updates 1 of north for f and 2 of north for f" in faults(*line, *again)[0]
    assert not faults(*line, start(2, at=0), adopt(2, 0, 6), step(2, 1, 7, group=9), update(2, 1, 0, 2))


def test_another_federation_begins_with_number_1_again_and_a_group_may_be_in_one_of_both():
    first = [start(1), adopt(1, 0, 2), step(1, 1, 3), update(1, 1, 0, 1)]
    elsewhere = update(1, 2, 1, 1).model_copy(update={"federation": "g"})
    assert not faults(*first, adopt(1, 1, 4), step(1, 2, 5), elsewhere)
    assert "is in updates 1 of north for f and 1 of north for g" in faults(*first, step(1, 2, 5),
        elsewhere.model_copy(update={"since": 0}))[0]  # fmt: skip


def test_a_number_that_means_two_updates_is_found():
    first = [start(1), adopt(1, 0, 2), step(1, 1, 3), update(1, 1, 0, 1)]
    assert not faults(*first, first[-1])
    other = first[-1].update.model_copy(update={"bytes": 2})
    assert "written again" in faults(*first, first[-1].model_copy(update={"update": other}))[0]


def test_an_adoption_without_its_weights_is_half_a_commit():
    found = audit("north", RunLog(ledger=[start(1), adopt(1, 0, 2)])).faults
    assert any(
        "global version 1 was adopted" in fault or "was adopted and announced no weights" in fault for fault in found
    )


def test_the_example_of_a_site_is_a_configuration():
    from pathlib import Path

    from schemas.config import load

    config = load(Path(__file__).parents[4] / "docs" / "examples" / "site.toml")
    assert config.federation.is_site
