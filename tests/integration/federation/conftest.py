"""Federations on the session's broker: one whose sites are simulated, and one site whose coordinator is played."""

import threading
from contextlib import closing
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.federation.audit import audit
from pipelines.local.topics import create_topics
from schemas.federating import FederationConfig
from tests.support.federation import Federation
from tests.support.simulated_sites import SimulatedSites
from tests.support.site_stage import Stage
from trainers.federation.coordinator import run


@pytest.fixture
def model(tmp_path):
    """Twelve numbers."""
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = {"w": np.arange(10, dtype=np.float32).reshape(5, 2), "b": np.float32([0.5, -0.5])}
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture
def configure(broker, model, tmp_path):
    """Makes a configuration with topics of its own."""

    def make(**changes):
        tree = {
            "name": f"fed-{uuid4().hex[:8]}",
            "kafka": {"bootstrap": broker},
            "store": str(tmp_path / "store"),
            "model": str(model),
            "deadline_s": 60.0,
            "quorum": 2,
        }
        config = FederationConfig.model_validate(tree | changes)
        create_topics(config)
        return config

    return make


class Leading:
    """A coordinator on a thread, until its rounds are done."""

    def __init__(self, config):
        self.config, self.error = config, None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            run(self.config)
        except BaseException as error:  # noqa: BLE001 - for the thread that asks
            self.error = error

    def end(self, timeout_s=60):
        """Waits for its end, and has its promises checked."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), f"the coordinator goes on after {timeout_s} s"
        if self.error:
            raise self.error
        verdict = audit(self.config)
        assert verdict.holds, verdict.faults
        return verdict.counts


@pytest.fixture
def lead():
    return Leading


@pytest.fixture
def play():
    """Makes simulated sites, and closes them."""
    made = []

    def make(config, names=("east", "north", "south", "west"), **options):
        made.append(SimulatedSites(config, names, **options))
        return made[-1]

    yield make
    for sites in made:
        sites.close()


@pytest.fixture
def federation(broker, tmp_path, model_dir):
    """A federation with global version 1, the tiny model."""
    with closing(Federation(broker, tmp_path, model_dir)) as playing:
        yield playing


@pytest.fixture
def stage(make_config, model_dir, federation, nursery, tmp_path):
    """One site before it; answers come."""
    found = Stage(make_config, model_dir, federation, nursery, tmp_path, threading.Event())
    found.may_answer.set()
    yield found
    found.may_answer.set()
