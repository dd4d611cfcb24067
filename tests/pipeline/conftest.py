"""A model, an engine that is simulated, and pools on a real broker; a test that asks for them says its ``config``."""

import pytest

from pipelines.local.tiny_model import build_tiny_model
from tests.pipeline.rollout_process import Topics
from tests.support.simulated_engine import SimulatedEngine
from transforms.generation.pool import Pool
from transforms.generation.tokenizer import Tokenizer
from transforms.score import scorer_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def engine():
    with SimulatedEngine() as engine:
        yield engine


@pytest.fixture
def topics(config):
    return Topics(config)


@pytest.fixture
def open_pool(config, model):
    opened = []

    def open_one():
        opened.append(Pool(config, 0, Tokenizer.load(model), scorer_of(config.rewards)))
        return opened[-1]

    yield open_one
    for pool in opened:
        pool.stop()
