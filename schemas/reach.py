"""Why Kafka does not answer, as far as a socket can tell: clients only say that they waited in vain.

nobody accepts a connection ──► it is not there: start it, or correct the address
somebody does ────────────────► it does not let us in: protocol, user or password, or it is no Kafka

Every process asks this when its client has given up.
"""

import socket
from typing import Final

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, ConfigError, UserError

_CONNECT_S: Final = 2.0
_SAFE: Final = ("security_protocol", "sasl_mechanism", "sasl_plain_username")
"""What a message may repeat of ``kafka.client``."""


def unreachable(kafka: KafkaConfig, error: Exception) -> UserError:
    """What to raise when a client could not connect, with what was given, expected and can be done.

    Args:
        kafka: how it tried.
        error: what the client said.
    """
    if type(error).__name__ == "KafkaConfigurationError":  # named, not imported: schemas know no client
        return ConfigError(f"kafka.client: kafka-python refuses these settings: {error}; correct them")
    said = f"({str(error) or type(error).__name__})"
    if not any(_accepts(address) for address in kafka.bootstrap.split(",")):
        return BrokerError(
            f"Kafka at {kafka.bootstrap} cannot be reached {said}: nobody listens there; start it (asyncflow up, or "
            "asyncflow kafka RUN), or give another kafka.bootstrap"
        )
    given = {"security_protocol": "PLAINTEXT", **kafka.client}
    how = ", ".join(f"{key} = {given[key]!r}" for key in _SAFE if key in given)
    return BrokerError(
        f"Kafka at {kafka.bootstrap} cannot be reached {said}: somebody accepts connections there and does not go on "
        f"with them; compare kafka.client ({how}, and the password) with what the broker expects, and see whether the "
        "port is that of a broker"
    )


def _accepts(address: str) -> bool:
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False
