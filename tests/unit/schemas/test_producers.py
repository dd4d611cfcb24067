"""Settings that kafka-python does not know are named, and what they hold is not."""

import traceback

import pytest
from prometheus_client import CollectorRegistry

from pipelines.append import append
from pipelines.client import Client
from pipelines.gateway.appender import Appender
from schemas.config import KafkaConfig, RunConfig
from schemas.errors import ConfigError
from schemas.transactions import open_producer
from transforms.generation.worker.registrar import Registrar
from transforms.generation.worker.state import Metrics, WorkerState

CANARY = "canary-of-the-password"
MISTYPED = {"sasl_plain_pasword": CANARY}
KAFKA = KafkaConfig(bootstrap="127.0.0.1:1").model_copy(update={"client": MISTYPED})
CONFIG = RunConfig().model_copy(update={"kafka": KAFKA})
OPENINGS = {
    "client": lambda: Client("127.0.0.1:1", "demo", MISTYPED),
    "append": lambda: append(KAFKA, "demo.prompts", [], "prompts"),
    "appender": lambda: Appender(KAFKA),
    "transactions": lambda: open_producer(KAFKA, "demo.learner"),
    "registrar": lambda: Registrar(CONFIG, WorkerState(Metrics(CollectorRegistry()), 256))._connected(),
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_mistyped_setting_is_named_and_not_shown(opening):
    with pytest.raises(ConfigError, match=r"kafka\.client: .* knows no sasl_plain_pasword; correct") as raised:
        opening()
    assert CANARY not in "".join(traceback.format_exception(raised.value))
