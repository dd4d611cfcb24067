"""How to reach Kafka: the section ``kafka`` of every configuration."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from schemas.connections import connection_options
from schemas.limits import MAX_TRAJECTORY_BYTES
from schemas.roles import RoleName
from schemas.secrets import holds_only_references, is_secret, reveal
from schemas.sections import Positive, Seconds, Section
from schemas.tokens import TOKEN, token_provider

Principal = Annotated[str, Field(pattern=r"^[A-Za-z]+:[^*\s].*$", max_length=300)]
"""Type and name, such as ``User:learner``; not ``User:*``, which is everybody."""


class KafkaConfig(Section):
    """How to reach Kafka, and the shape of the topics."""

    bootstrap: str = "127.0.0.1:9092"
    """Brokers, ``host:port`` separated by commas. Where several are named, one whose host does not answer is given up
    after 8 s for another."""
    partitions: Positive = 2
    """Partitions of the prompts, trajectories, pending and feedback topics."""
    replication: Positive = 1
    """Copies of every partition; 3 in production."""
    request_timeout_s: Annotated[float, Field(gt=0.05, lt=540)] = 30.0
    """How long a request may take before it is tried again. It has to be longer than a reader waits for records,
    0.05 s, and shorter than a connection may be idle, 540 s: no consumer could be made otherwise."""
    transaction_timeout_s: Seconds = 60.0
    """How long a transaction may stay open before the broker aborts it."""
    client: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further arguments of kafka-python's clients, such as ``security_protocol``. A password is not written here: say
    where it is, ``"{env:NAME}"`` or ``"{file:PATH}"``, and each process looks there when it connects. So is
    ``sasl_oauth_token``, the token of OAUTHBEARER, which is looked up again for every connection."""
    principals: dict[RoleName, Principal] = Field(default_factory=dict)
    """Who has which role, as the broker calls them, such as ``"User:CN=learner"``; ``User:RUN-ROLE`` where nothing is
    said. Only ``asyncflow topics --acls`` reads it."""

    @field_validator("client")
    @classmethod
    def _says_where_secrets_are(cls, client: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for key, value in client.items():
            if is_secret(key) and isinstance(value, str) and value and not holds_only_references(value):
                raise ValueError(
                    f"{key} is written out, and would be copied into the run's directory and its report; give "
                    '"{env:NAME}" for an environment variable, or "{file:PATH}"'
                )
        return client

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every client of kafka-python takes, secrets among them.

        Raises:
            ConfigError: a secret is not where the configuration says.
        """
        given = {key: reveal(f"kafka.client.{key}", value) for key, value in self.client.items() if key != TOKEN}
        if TOKEN in self.client:
            given["sasl_oauth_token_provider"] = token_provider(str(self.client[TOKEN]))
        brokers = self.bootstrap.split(",")
        return {
            "bootstrap_servers": brokers,
            "request_timeout_ms": int(self.request_timeout_s * 1000),
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": 500,
            "retry_backoff_ms": 50,
            **connection_options(len(set(brokers))),
            **given,
        }

    def consumer_options(self) -> dict[str, Any]:
        """Keyword arguments of a ``KafkaConsumer`` that every reader of a run uses.

        It sees committed records only, commits nothing by itself and never jumps over a lost range:
        it raises instead.
        """
        return {
            **self.client_options(),
            "isolation_level": "read_committed",
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "fetch_max_wait_ms": 50,
            "max_partition_fetch_bytes": MAX_TRAJECTORY_BYTES,
        }

    def producer_options(self, transactional_id: str | None = None) -> dict[str, Any]:
        """Keyword arguments of a ``KafkaProducer`` that waits for all replicas."""
        options = {
            **self.client_options(),
            "acks": "all",
            "linger_ms": 5,
            "max_request_size": MAX_TRAJECTORY_BYTES + (1 << 20),
        }
        if transactional_id is None:
            return options
        timeout_ms = int(self.transaction_timeout_s * 1000)
        return {
            **options,
            "transactional_id": transactional_id,
            "transaction_timeout_ms": timeout_ms,
            # A record that is delivered after the broker has given the transaction up is of no use.
            "delivery_timeout_ms": timeout_ms,
            "request_timeout_ms": min(options["request_timeout_ms"], timeout_ms // 2),
        }
