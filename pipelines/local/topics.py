"""The topics of a run or a federation: created with the settings that the promises need, and checked if they exist."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from schemas.config import KafkaConfig, RunConfig
from schemas.errors import BrokerError
from schemas.federating import FederationConfig
from schemas.reach import told, unreachable
from schemas.topics import MIN_IN_SYNC, TopicSpec

_Answer = TypeVar("_Answer")
_LONGEST_PAUSE_S: Final = 1.0
_ASK_AGAIN_S: Final = 0.2
_SET: Final = "kafka-configs.sh --alter"
"""Sets what can be set of a topic while it is written to."""


def wait_for_broker(kafka: KafkaConfig, timeout_s: float) -> None:
    """Returns once the broker answers.

    Raises:
        BrokerError: it did not within ``timeout_s``.
    """
    deadline, pause_s = time.monotonic() + timeout_s, 0.05
    while True:
        try:
            connect(kafka, min(timeout_s, 5.0)).close()
            return
        except BrokerError:
            if time.monotonic() + pause_s > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def create_topics(config: RunConfig | FederationConfig, timeout_s: float = 10.0) -> list[str]:
    """Creates what is missing of the topics of a run or a federation and returns the names of those.

    Raises:
        BrokerError: Kafka cannot be reached, or a topic exists with other partitions or settings.
    """
    from kafka.errors import KafkaError

    wait_for_broker(config.kafka, timeout_s)
    specs = _specs_of(config)
    admin = connect(config.kafka, timeout_s)
    try:
        existing = set(admin.list_topics())
        _check([spec for spec in specs if spec.name in existing], admin)
        return _create([spec for spec in specs if spec.name not in existing], admin)
    except KafkaError as error:
        raise BrokerError(
            f"Kafka at {config.kafka.bootstrap} could not create the topics of {config.name}: {told(error)}"
        ) from error
    finally:
        admin.close()


def inspect_topics(config: RunConfig | FederationConfig, timeout_s: float = 10.0) -> dict[str, list[str]]:
    """How the topics of a run or a federation stand, and nothing is created: what is not as it should be, of each.

    Raises:
        BrokerError: Kafka cannot be reached, or does not say.
    """

    def inspect(admin: Any) -> dict[str, list[str]]:
        existing = set(admin.list_topics())
        return _compare([spec for spec in _specs_of(config) if spec.name in existing], admin)

    return _ask(config.kafka, timeout_s, inspect, "does not show its topics")


def _specs_of(config: RunConfig | FederationConfig) -> list[TopicSpec]:
    if isinstance(config, RunConfig):
        return config.topics.specs(config.kafka.partitions, config.kafka.replication)
    return config.topics.specs(config.kafka.replication)


def topic_partitions(kafka: KafkaConfig, topic: str, timeout_s: float = 10.0) -> int:
    """How many partitions a topic has.

    Raises:
        BrokerError: Kafka cannot be reached, or has no such topic.
    """

    def count(admin: Any) -> int:
        if topic not in admin.list_topics():
            raise BrokerError(f"Kafka at {kafka.bootstrap} has no topic {topic}; create it with asyncflow topics")
        return len(admin.describe_topics([topic])[0]["partitions"])

    return _ask(kafka, timeout_s, count, f"does not show its topic {topic}")


def _ask(kafka: KafkaConfig, timeout_s: float, ask: Callable[[Any], _Answer], fault: str) -> _Answer:
    """The answer to a question that changes nothing; it is asked again if the broker that was asked has just gone.

    Raises:
        BrokerError: Kafka cannot be reached within ``timeout_s``, or refuses: the fault is told in these words.
    """
    from kafka.errors import KafkaConnectionError, KafkaError

    deadline = time.monotonic() + timeout_s
    while True:
        admin = connect(kafka, max(deadline - time.monotonic(), _ASK_AGAIN_S))
        try:
            return ask(admin)
        except KafkaError as error:
            if not isinstance(error, KafkaConnectionError) or time.monotonic() + _ASK_AGAIN_S > deadline:
                raise BrokerError(f"Kafka at {kafka.bootstrap} {fault}: {told(error)}") from error
        finally:
            admin.close()
        time.sleep(_ASK_AGAIN_S)


def connect(kafka: KafkaConfig, timeout_s: float) -> Any:
    """kafka-python's client for administration, connected.

    Raises:
        BrokerError: Kafka cannot be reached.
    """
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        return KafkaAdminClient(**{**kafka.client_options(), "bootstrap_timeout_ms": int(timeout_s * 1000)})
    except (KafkaError, OSError, ValueError) as error:
        raise unreachable(kafka, error) from error


def _create(specs: list[TopicSpec], admin: Any) -> list[str]:
    """Creates topics that were not listed; another process may have created some of them meanwhile."""
    from kafka.errors import NoError, TopicAlreadyExistsError, for_code

    if not specs:
        return []
    answer = admin.create_topics(_requests(specs), raise_errors=False)
    codes = {topic["name"]: topic["error_code"] for topic in answer["topics"]}
    for name, code in codes.items():
        if code not in (NoError.errno, TopicAlreadyExistsError.errno):
            raise for_code(code)(name)
    admin.wait_for_topics(list(codes))
    _check([spec for spec in specs if codes[spec.name] == TopicAlreadyExistsError.errno], admin)
    return [name for name, code in codes.items() if code == NoError.errno]


def _requests(specs: list[TopicSpec]) -> dict[str, dict[str, Any]]:
    return {
        spec.name: {"num_partitions": spec.partitions, "replication_factor": spec.copies, "configs": spec.settings}
        for spec in specs
    }


def _check(specs: list[TopicSpec], admin: Any) -> None:
    """Compares existing topics with what they should be."""
    faults = [fault for found in _compare(specs, admin).values() for fault in found]
    if not faults:
        return
    remedies = []
    if any(_SET in fault for fault in faults):
        remedies.append("set what has a command behind it, with the brokers' --bootstrap-server; their records stay")
    if not all(_SET in fault for fault in faults):
        remedies.append(
            "use another run name (--name), say what they are (kafka.partitions, kafka.replication), or delete them"
        )
    raise BrokerError(
        "topics of another shape exist:\n  " + "\n  ".join(faults) + "\n" + "; for the rest, ".join(remedies)
    )


def _compare(specs: list[TopicSpec], admin: Any) -> dict[str, list[str]]:
    """What is not as it should be, of each topic."""
    from kafka.admin import ConfigResource, ConfigResourceType

    if not specs:
        return {}
    names = [spec.name for spec in specs]
    admin.wait_for_topics(names)
    partitions = {topic["name"]: topic["partitions"] for topic in admin.describe_topics(names)}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    settings = admin.describe_configs(resources, config_filter="all")["topic"]
    return {spec.name: _faults(spec, partitions[spec.name], settings[spec.name]) for spec in specs}


def _faults(spec: TopicSpec, partitions: list[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """Asks for no more copies that agree than there are: nobody could write any more to a topic that has too few."""
    copies = min(len(each["replica_nodes"]) for each in partitions)
    expected = {"cleanup.policy": "delete", **spec.settings}
    agree = int(expected.pop(MIN_IN_SYNC, "1"))
    given = {key: str(settings[key]["value"]) for key in (*expected, MIN_IN_SYNC)}
    wrong = []
    if len(partitions) != spec.partitions:
        wrong.append(f"{spec.name}: {len(partitions)} partitions, expected {spec.partitions}")
    if copies < spec.copies:
        wrong.append(f"{spec.name}: copies of a partition: {copies}, expected {spec.copies}")
    wrong += [
        f"{spec.name}: {key} is {given[key]}, expected {expected[key]}"
        for key in expected
        if given[key] != expected[key]
    ]
    if int(given[MIN_IN_SYNC]) < agree <= copies:
        wrong.append(
            f"{spec.name}: {MIN_IN_SYNC} is {given[MIN_IN_SYNC]}, expected {agree} or more: "
            f"{_SET} --topic {spec.name} --add-config {MIN_IN_SYNC}={agree}"
        )
    return wrong
