"""Why Kafka does not answer: nobody is there, or somebody does not let us in."""

import socket

import pytest

from pipelines.local.ports import free_ports
from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from schemas.reach import unreachable


def test_nobody_listens():
    (port,) = free_ports(1)
    error = unreachable(KafkaConfig(bootstrap=f"127.0.0.1:{port},[::1]:{port}"), TimeoutError("gave up"))
    assert isinstance(error, BrokerError)
    assert "cannot be reached (gave up): nobody listens there" in str(error)


def test_somebody_listens_and_does_not_let_us_in(monkeypatch):
    monkeypatch.setenv("PW", "hunter2")
    client = {"security_protocol": "SASL_SSL", "sasl_plain_username": "ann", "sasl_plain_password": "{env:PW}"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kafka = KafkaConfig(bootstrap=f"127.0.0.1:{listener.getsockname()[1]}", client=client)
        said = str(unreachable(kafka, TimeoutError("gave up")))
    assert "does not go on" in said
    assert "security_protocol = 'SASL_SSL', sasl_plain_username = 'ann', and the password" in said
    assert "hunter2" not in said


def test_a_setting_that_the_client_does_not_know_is_named():
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    kafka = KafkaConfig(client={"security_protokol": "SSL"})
    with pytest.raises(KafkaError) as caught:
        KafkaAdminClient(**kafka.client_options())
    said = str(unreachable(kafka, caught.value))
    assert "kafka.client: kafka-python refuses these settings" in said
    assert "security_protokol" in said


def test_who_is_known_and_may_not_is_told_what_to_ask_for():
    from kafka.errors import SaslAuthenticationFailedError, TransactionalIdAuthorizationFailedError

    client = {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_username": "ann"}
    kafka = KafkaConfig(bootstrap="kafka:9093", client=client)
    assert "kafka:9093 refuses" in str(refused := unreachable(kafka, TransactionalIdAuthorizationFailedError("no")))
    assert "asyncflow topics --acls" in str(refused)
    said = str(unreachable(kafka, SaslAuthenticationFailedError("invalid credentials")))
    assert "does not let us in" in said
    assert "sasl_plain_username = 'ann'" in said
