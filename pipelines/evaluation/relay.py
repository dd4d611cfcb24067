"""Workers that serve evaluations alone: they follow announcements of their own, which come from here.

    {run}.weights ──evaluation──► {worker_run}.weights ──► workers started with --name WORKER_RUN

The record is the learner's and the bytes are those of the store, so such a worker verifies a version as any
other does. It keeps it until the next one is to be evaluated: all answers are by exactly one version.
"""

from pipelines.append import Entry, append
from pipelines.local.topics import create_topics
from pipelines.log import read_topic
from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.ledger import decode_entry
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
        if read_topic(self._kafka, named.topics.ledger, decode_entry):
            raise ConfigError(
                f"evaluation.worker_run = {self._name!r} is a run with a learner, whose workers follow that one; "
                "give the name under which workers for evaluations alone are started"
            )
        said = read_topic(self._kafka, self._topic, WeightVersion.decode)
        self._newest = said[-1] if said else None

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
        append(self._kafka, self._topic, [Entry(version.encode(), self._name.encode())], "an announcement")
        self._newest = version
