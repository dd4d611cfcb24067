"""A learner as a federation's site, on a real broker; tests/support/federation.py plays the coordinator."""

import logging
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.audit import audit
from pipelines.local.topics import create_topics
from pipelines.log import RunReader
from schemas.config import RunConfig, validate
from schemas.crash_points import SITE_POINTS, VARIABLE, arm, hits
from schemas.ledger import AdoptEntry, UpdateEntry, surviving_adoptions, surviving_steps
from schemas.weights import version_path
from tests.support.federation import Federation
from tests.support.trajectories import Rollouts, learn, read_ledger, wait_until, write_prompts

logging.getLogger("kafka").setLevel(logging.ERROR)


@pytest.fixture
def federation(broker, tmp_path, model_dir):
    """A federation with global version 1, the tiny model."""
    playing = Federation(broker, tmp_path, model_dir)
    yield playing
    playing.close()


@pytest.fixture
def make_site(make_config, federation):
    """From the name of a site and changes of sections to the configuration of its run."""

    def make(site="north", *, federation_section=None, **learner):
        config = make_config(**{"checkpoint_every": 100, "max_staleness": 1, **learner})
        tree = config.model_dump()
        tree["federation"] = federation.section(site, **(federation_section or {}))
        return validate(tree, "test")

    return make


@contextmanager
def playing(config, model_dir, nursery, directory, prompts=60, **environment):
    """Prompts, answers and a learner, ended with the test."""
    write_prompts(config, prompts)
    with Rollouts(config, model_dir) as rollouts:
        nursery.start(config, directory, **environment)
        yield rollouts


def updates_of(config):
    return [entry for entry in read_ledger(config) if isinstance(entry, UpdateEntry)]


def local_weights(config, version):
    return load_file(Path(version_path(config.weights.root, version)) / "model.safetensors")


def wait_for_updates(federation, number, nursery):
    """Returns once so many are announced; a learner that ended is told of."""
    return wait_until(
        lambda: len(federation.updates()) >= number or (nursery.has_ended() and pytest.fail(nursery.said()))
    )


def verdict_of(config):
    with RunReader(config.kafka, config.name) as reader:
        return audit(config.name, reader.advance())


def test_a_site_starts_from_the_global_version_and_hands_over_what_it_learned(
    make_site, model_dir, federation, nursery, tmp_path
):
    config = make_site(steps=4)
    start = {name: tensor + 0.01 for name, tensor in federation.weights(1).items()}
    federation.publish(start)
    with playing(config, model_dir, nursery, tmp_path):
        federation.order("north", steps=2)
        wait_for_updates(federation, 1, nursery)
        federation.merge()
        federation.order("north", steps=2)
        assert nursery.wait() == 0, nursery.said()
    entries = read_ledger(config)
    first, second = surviving_adoptions(entries)
    assert (first.step, first.global_version, second.step, second.global_version) == (0, 2, 2, 3)
    adopted = local_weights(config, first.version)
    assert all(np.array_equal(adopted[name], tensor) for name, tensor in start.items())
    one, two = updates_of(config)
    assert [(each.since, each.step, each.update.sequence) for each in (one, two)] == [(0, 2, 1), (2, 4, 2)]
    assert (one.update.base_version, one.update.steps, one.update.round) == (2, 2, 1)
    line = surviving_steps(entries)
    assert one.update.samples == sum(part.samples for step in line[:2] for part in step.trained) == 24
    made, learned = federation.numbers(one.update), local_weights(config, line[1].version)
    assert all(np.array_equal(learned[name] - start[name], made[name]) for name in start)
    merged = local_weights(config, second.version)
    assert all(np.allclose(merged[name], learned[name], atol=1e-7) for name in start), "one site's mean is its own"
    verdict = verdict_of(config)
    assert verdict.ok, verdict.faults
    assert (verdict.updates, verdict.adoptions) == (2, 2)
    site = federation.sites()["north"]
    assert (site.samples, site.base_version) == (48, 3)
    assert site.cores >= 1
    assert site.tokens_s > 0
