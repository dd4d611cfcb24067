"""Kafka producers, opened alike by all who write. kafka-python is imported when one is opened."""

from collections.abc import Mapping
from typing import Any

from schemas.errors import ConfigError


def connect_producer(options: Mapping[str, Any]) -> Any:
    """A ``KafkaProducer`` with these options.

    Args:
        options: of :meth:`schemas.config.KafkaConfig.producer_options`, and the caller's own.

    Raises:
        ConfigError: kafka-python takes them for none. Its own message repeats their values, secrets among them.
        KafkaError: no broker answers.
    """
    from kafka import KafkaProducer

    try:
        return KafkaProducer(**options)
    except ValueError as error:
        unknown = sorted(options.keys() - {*KafkaProducer.DEFAULT_CONFIG, *KafkaProducer.DEPRECATED_CONFIGS})
        said = f"it knows no {', '.join(unknown)}" if unknown else str(error)
        raise ConfigError(f"kafka.client: kafka-python refuses these settings: {said}; correct them") from None
