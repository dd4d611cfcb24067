"""The address that a worker announces."""

import socket

import pytest
from prometheus_client import CollectorRegistry

from schemas.config import RunConfig, WorkerConfig
from schemas.errors import ConfigError
from transforms.generation.worker.registrar import Registrar, url_of
from transforms.generation.worker.state import Metrics, WorkerState


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "10.0.0.7", "port": 8001}, "http://10.0.0.7:8001"),
        ({"host": "0.0.0.0"}, f"http://{socket.gethostname()}:8000"),
        ({"host": "::"}, f"http://{socket.gethostname()}:8000"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"host": "0.0.0.0", "advertise": "https://gpu-7.example:443"}, "https://gpu-7.example:443"),
    ],
)
def test_the_address_is_the_one_that_others_can_use(given, url):
    assert url_of(RunConfig(worker=WorkerConfig(**given))) == url


def test_an_address_that_cannot_be_announced_is_told_before_anything_starts():
    config = RunConfig(worker=WorkerConfig(host="fe80::1%eth0"))
    with pytest.raises(ConfigError, match=r"worker\.host = 'fe80::1%eth0'.*worker\.advertise"):
        Registrar(config, WorkerState(Metrics(CollectorRegistry()), 2048))
