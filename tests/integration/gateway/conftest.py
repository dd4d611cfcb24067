"""A gateway on a real broker, before a simulated engine."""

import itertools

import pytest

from pipelines.local.ports import free_ports
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, ModelConfig, RolloutConfig, RunConfig, SamplingConfig, WorkerConfig
from schemas.gateway import GatewayConfig
from tests.support.browser import open_browser
from tests.support.gateway import Gateway, build_model
from tests.support.simulated_engine import SimulatedEngine

_NUMBERS = itertools.count(1)


@pytest.fixture
def run_config(broker):
    """A run whose name looks well in pictures."""
    config = RunConfig(name=f"demo-{next(_NUMBERS)}", kafka=KafkaConfig(bootstrap=broker))
    create_topics(config)
    return config


@pytest.fixture(scope="module")
def browser():
    with open_browser() as running:
        yield running


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine():
    with SimulatedEngine(seed=1, version=3, mean_tokens=20) as running:
        yield running


@pytest.fixture
def make_config(run_config, model, engine):
    """A configuration with a gateway on a port of its own, before the simulated engine."""

    def make(*engines, feedback=None, **gateway):
        urls = tuple(each.url for each in engines or (engine,))
        rollout = RolloutConfig(workers=urls, discover=False, sampling=SamplingConfig(max_tokens=64), attempts=2)
        limits = {"address_rate_per_s": 1000, "address_burst": 10_000, **gateway}
        return run_config.model_copy(
            update={
                "rollout": rollout,
                "model": ModelConfig(path=str(model)),
                "worker": WorkerConfig(max_model_len_tokens=256),
                "gateway": GatewayConfig(port=free_ports(1)[0], **limits),
                "feedback": run_config.feedback.model_copy(update=feedback or {}),
            }
        )

    return make


@pytest.fixture
def gateway(make_config):
    with Gateway(make_config()) as running:
        yield running
