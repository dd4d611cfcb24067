"""Two learners that are sites and the coordinator, all of them real, on a real broker."""

import logging
import threading
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.federation.audit import audit
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, RunConfig, validate
from schemas.federating import FederationConfig
from schemas.federation import Merge, decode_rounds_entry, update_path, weights_root
from schemas.weights import version_path
from tests.support.learners import learner_config
from tests.support.trajectories import Rollouts, learn, read_all, verdict_of, write_prompts
from trainers.federation.coordinator import run

logging.getLogger("kafka").setLevel(logging.ERROR)
ROUNDS, STEPS = 2, 2


@pytest.fixture
def federation(broker, model_dir, tmp_path):
    """For two rounds of two sites, whose updates stay."""
    config = FederationConfig.model_validate({
        "name": f"fed-{uuid4().hex[:8]}", "kafka": {"bootstrap": broker}, "store": str(tmp_path / "shared"),
        "model": str(model_dir), "rounds": ROUNDS, "quorum": 2, "keep": 9, "keep_updates": True,
        "selection": {"steps": STEPS}, "deadline_s": 300.0,
    })  # fmt: skip
    create_topics(config)
    return config


@pytest.fixture
def make_site(broker, federation, model_dir, tmp_path):
    """A site's run; groups are of unlike size, so that sites do not count alike."""

    def make(name, groups):
        config = RunConfig(name=f"{name}-{uuid4().hex[:8]}", kafka=KafkaConfig(bootstrap=broker))
        create_topics(config)
        directory = tmp_path / name
        directory.mkdir()
        tree = learner_config(config, directory, model_dir, steps=ROUNDS * STEPS, groups_per_step=groups).model_dump()
        tree["federation"] = {"name": federation.name, "site": name, "kafka": {"bootstrap": broker},
                              "store": federation.store, "heartbeat_s": 0.5}  # fmt: skip
        write_prompts(config, 60, seed=groups)
        return validate(tree, "test"), directory

    return make


def test_a_round_is_the_mean_that_one_computes_by_hand(federation, make_site, model_dir, nursery):
    (north, directory), (south, _) = make_site("north", 3), make_site("south", 1)
    leading = threading.Thread(target=run, args=[federation], daemon=True)
    leading.start()
    with Rollouts(north, model_dir), Rollouts(south, model_dir):
        nursery.start(north, directory)
        learn(south)
        assert nursery.wait() == 0, nursery.said()
    leading.join(60)
    assert not leading.is_alive()
    merges = [entry for record in read_all(federation, federation.topics.rounds)
              if isinstance(entry := decode_rounds_entry(record.value), Merge)]  # fmt: skip
    assert [len(merge.merged) for merge in merges] == [2, 2]
    for merge in merges:
        samples = {part.site: part.samples for part in merge.merged}
        assert samples == {"north": 24, "south": 8}
        for name, base in weights(federation, merge.base_version).items():
            parts = [samples[part.site] * update(federation, part)[name].astype(np.float64) for part in merge.merged]
            expected = base + sum(parts) / 32
            np.testing.assert_allclose(weights(federation, merge.version)[name], expected, atol=1e-7)
            assert np.abs(expected - base).max() > 0
    verdict = audit(federation)
    assert verdict.holds, verdict.faults
    for config in (north, south):
        found = verdict_of(config)
        assert found.ok, found.faults
        assert (found.updates, found.adoptions, found.steps) == (ROUNDS, ROUNDS, ROUNDS * STEPS)


def weights(federation, version):
    return load_file(f"{version_path(weights_root(federation.store), version)}/model.safetensors")


def update(federation, part):
    return load_file(f"{update_path(federation.store, part.site, part.sequence)}/update.safetensors")
