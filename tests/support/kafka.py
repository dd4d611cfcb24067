"""A real broker for the tests: one for the whole session, and a fresh run on it for each test."""

from uuid import uuid4

import pytest

from pipelines.local.broker import Broker
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, RunConfig


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """The bootstrap string of a real broker, ended with the session."""
    with Broker(tmp_path_factory.mktemp("kafka")) as running:
        yield running.bootstrap


@pytest.fixture
def run_config(broker):
    """A configuration whose run has a name of its own and its topics on the broker."""
    config = RunConfig(name=f"test-{uuid4().hex[:12]}", kafka=KafkaConfig(bootstrap=broker))
    create_topics(config)
    return config
