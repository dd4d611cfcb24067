"""What a merge counts its updates, and what the log says of them."""

import pytest

from schemas.errors import ConfigError
from schemas.federating import FederationConfig
from schemas.federation import SiteUpdate
from trainers.federation.bases import Bases
from trainers.federation.coordinator import strategy_of
from trainers.federation.examine import Candidate
from trainers.federation.merge import Gathered, Merger
from trainers.federation.spool import Spool

NOISE = {"clip_norm": 1.0, "noise_multiplier": 1.0}


def candidate(site, samples, at=0):
    update = SiteUpdate(site=site, sequence=1, base_version=1, samples=samples, tokens=1, steps=1, bytes=1,
                        manifest_sha256="ab" * 32)  # fmt: skip
    return Candidate(update, at, 2.5, at)


CANDIDATES = [candidate("east", 1, 0), candidate("north", 3, 1), candidate("south", 4, 2)]


@pytest.fixture
def merger():
    spool = Spool(3)
    bases = Bases(None, {}, spool, wanted=False)

    def make(name="fedavg", **changes):
        strategy = {"name": name, **changes.pop("strategy", {})}
        config = FederationConfig(strategy=strategy, **changes)
        return Merger(config, strategy_of(config), spool, bases)

    yield make
    spool.close()


@pytest.mark.parametrize(
    ("name", "weights"),
    [("fedavg", [1 / 8, 3 / 8, 4 / 8]), ("trimmed_mean", [1 / 3] * 3), ("median", [1 / 3] * 3)],
)
def test_the_log_says_what_an_update_really_counts(merger, state, name, weights):
    assert merger(name).weights(CANDIDATES, state, None) == weights


def entry(merger, state):
    gathered = Gathered(candidates=CANDIDATES, position=3)
    return merger.entry(gathered, merger.weights(CANDIDATES, state, None), state, None, 2, None)


def test_with_noise_the_log_says_nothing_of_a_sites_data(merger, state):
    private = merger(privacy=NOISE, strategy={"weigh_by": "equal"}, asynchronous=True, buffer=3)
    assert [(each.samples, each.norm) for each in entry(private, state).merged] == [(0, 0.0)] * 3
    assert [(each.samples, each.norm) for each in entry(merger(), state).merged] == [(1, 2.5), (3, 2.5), (4, 2.5)]


def test_noise_is_not_added_to_what_is_not_clipped():
    config = FederationConfig(asynchronous=True, keep=30, privacy=NOISE,
                              strategy={"name": "fedasync", "weigh_by": "equal"})  # fmt: skip
    with pytest.raises(ConfigError, match="is added too, and not clipped; take fedbuff"):
        strategy_of(config)
