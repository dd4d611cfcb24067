"""Why Kafka does not answer, as far as a socket can tell: clients only say that they waited in vain.

nobody accepts a connection ──► it is not there: start it, or correct the address
somebody does ────────────────► it does not let us in: protocol, certificate, user or password, or it is no Kafka
it answers, and refuses ──────► a right that the user lacks, or a log-in that counts no more

Every process asks this when its client has given up.
"""

import socket
from typing import Final

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, ConfigError, UserError

_CONNECT_S: Final = 2.0
_SAFE: Final = ("security_protocol", "sasl_mechanism", "sasl_plain_username")
"""What a message may repeat of ``kafka.client``."""
_NO_RIGHT: Final = (
    "whoever it is logged in as may not do that; give its role what it needs (asyncflow topics --acls), or log in as "
    "somebody else (kafka.client)"
)


def unreachable(kafka: KafkaConfig, error: Exception) -> UserError:
    """What to raise when a client could not connect, with what was given, expected and can be done.

    Args:
        kafka: how it tried.
        error: what the client said.
    """
    if type(error).__name__ == "KafkaConfigurationError":  # named, not imported: schemas know no client
        return ConfigError(f"kafka.client: kafka-python refuses these settings: {error}; correct them")
    said = f"({str(error) or type(error).__name__})"
    if lacks_right(error):
        return BrokerError(f"Kafka at {kafka.bootstrap} refuses {said}: {_NO_RIGHT}")
    if type(error).__name__ == "SaslAuthenticationFailedError":
        return BrokerError(
            f"Kafka at {kafka.bootstrap} does not let us in {said}; compare kafka.client ({_how(kafka)}, and the "
            "secret) with what the broker knows"
        )
    if not is_listening(kafka):
        return BrokerError(
            f"Kafka at {kafka.bootstrap} cannot be reached {said}: nobody listens there; start it (asyncflow up, or "
            "asyncflow kafka RUN), or give another kafka.bootstrap"
        )
    return BrokerError(
        f"Kafka at {kafka.bootstrap} cannot be reached {said}: somebody accepts connections there and does not go on "
        f"with them; compare kafka.client ({_how(kafka)}, and the password) with what the broker expects, and see "
        "whether the port is that of a broker"
    )


def is_listening(kafka: KafkaConfig) -> bool:
    """Whether somebody accepts connections at one of the brokers' addresses.

    Who tries again for hours asks this first: a client of kafka-python 3.0.12 that could not connect keeps four file
    descriptors open for ever.
    """
    return any(_accepts(address) for address in kafka.bootstrap.split(","))


def lacks_right(error: BaseException) -> bool:
    """Whether a client's error says that its principal may not do what it asked for."""
    return any(kind.__name__ == "AuthorizationError" for kind in type(error).__mro__)


def told(error: Exception) -> str:
    """A client's error in words, and what to do if it is about rights."""
    return f"{error}; {_NO_RIGHT}" if lacks_right(error) else str(error)


def _how(kafka: KafkaConfig) -> str:
    given = {"security_protocol": "PLAINTEXT", **kafka.client}
    return ", ".join(f"{key} = {given[key]!r}" for key in _SAFE if key in given)


def _accepts(address: str) -> bool:
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False
