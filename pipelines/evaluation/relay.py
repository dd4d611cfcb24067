"""Workers that serve evaluations alone: they follow announcements of their own, which come from here.

    {run}.weights ──evaluation──► {worker_run}.weights ──► workers started with --name WORKER_RUN

The record is the learner's and the bytes are those of the store, so such a worker verifies a version as any
other does. It keeps it until the next one is to be evaluated: all answers are by exactly one version.
"""

from types import TracebackType
from typing import Self

from kafka import KafkaProducer
from kafka.errors import KafkaError

from pipelines.local.topics import create_topics
from pipelines.log import TopicReader
from schemas.config import RunConfig
from schemas.errors import BrokerError, ConfigError
from schemas.weights import WeightVersion


class Relay:
    """Announces versions to the workers of ``evaluation.worker_run``, whose topics it creates.

    Raises:
        ConfigError: that is the name of a run that trains.
        BrokerError: Kafka cannot be reached.
    """

    def __init__(self, config: RunConfig) -> None:
        self._kafka, self._name = config.kafka, config.evaluation.worker_run
        named = config.model_copy(update={"name": self._name})
        create_topics(named)
        self._topic = named.topics.weights
        if self._records(named.topics.ledger):
            raise ConfigError(
                f"evaluation.worker_run = {self._name!r} is a run with a learner, whose workers follow that one; "
                "give the name under which workers for evaluations alone are started"
            )
        said = [WeightVersion.decode(value) for value in self._records(self._topic)]
        self._newest = said[-1] if said else None
        self._producer = KafkaProducer(**config.kafka.producer_options())

    def _records(self, topic: str) -> list[bytes]:
        reader = TopicReader(self._kafka, topic)
        try:
            return [record.value or b"" for record in reader.read_on()]
        finally:
            reader.close()

    def announce(self, version: WeightVersion) -> None:
        """Lets the workers take up a version; nothing if they have been told already.

        Raises:
            ConfigError: they were given the weights of another run.
            BrokerError: Kafka did not take the announcement.
        """
        newest = self._newest
        if newest and newest.manifest_sha256 == version.manifest_sha256:
            return
        if newest and not version.supersedes(newest):
            raise ConfigError(
                f"the workers of evaluation.worker_run = {self._name!r} were given version {newest.version} of "
                f"generation {newest.generation} before, which version {version.version} of generation "
                f"{version.generation} does not follow: they belong to another run; give another name"
            )
        try:
            future = self._producer.send(self._topic, version.encode(), key=self._name.encode())
            future.get(timeout=self._kafka.request_timeout_s)
        except KafkaError as error:
            raise BrokerError(f"Kafka at {self._kafka.bootstrap} did not take an announcement: {error!r}") from error
        self._newest = version

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producer.close()
