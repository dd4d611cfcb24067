"""The topics of a run and of a federation: their names, and the settings that the promises need."""

from dataclasses import dataclass
from typing import Final

from schemas.limits import MAX_PROMPTS_MESSAGE_BYTES, MAX_TRAJECTORY_BYTES

_FOREVER: Final = {"retention.ms": "-1", "retention.bytes": "-1"}
_BRIEFLY: Final = {"retention.ms": "3600000", "segment.ms": "600000"}
"""For what is repeated every few seconds: Kafka deletes whole segments, so those must be short too."""
_APPENDED: Final = {"message.timestamp.type": "LogAppendTime"}
"""For what is joined by time: the broker's clock never goes back within a partition, and no producer can set it."""
_MARGIN_BYTES: Final = 1 << 20
MIN_IN_SYNC: Final = "min.insync.replicas"
"""How many copies have a record before it is acknowledged. Kafka's own is 1: the only one that has it may be lost."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of all topics of one run. Example: ``Topics("demo").prompts == "demo.prompts"``."""

    run: str

    @property
    def prompts(self) -> str:
        """What is to be answered."""
        return f"{self.run}.prompts"

    @property
    def trajectories(self) -> str:
        """Scored groups."""
        return f"{self.run}.trajectories"

    @property
    def pending(self) -> str:
        """Groups that wait for feedback."""
        return f"{self.run}.pending"

    @property
    def feedback(self) -> str:
        """Judgements of people and programs."""
        return f"{self.run}.feedback"

    @property
    def exchanges(self) -> str:
        """What people and programs asked a gateway."""
        return f"{self.run}.exchanges"

    @property
    def outcomes(self) -> str:
        """What became of pending groups and of feedback."""
        return f"{self.run}.outcomes"

    @property
    def weights(self) -> str:
        """Announcements of weight versions."""
        return f"{self.run}.weights"

    @property
    def admission(self) -> str:
        """How far the prompts may be generated."""
        return f"{self.run}.admission"

    @property
    def workers(self) -> str:
        """The registry of workers."""
        return f"{self.run}.workers"

    @property
    def ledger(self) -> str:
        """What was trained."""
        return f"{self.run}.ledger"

    @property
    def evals(self) -> str:
        """Held-out accuracies."""
        return f"{self.run}.evals"

    @property
    def dead_letters(self) -> str:
        """Inputs that could not be used."""
        return f"{self.run}.dead-letters"

    @property
    def rollout_group(self) -> str:
        """The consumer group under which the rollout pipeline commits finished prompts."""
        return f"{self.run}.rollout"

    @property
    def join_group(self) -> str:
        """The consumer group under which the feedback pipeline commits what it will not read again."""
        return f"{self.run}.join"

    @property
    def join_id(self) -> str:
        """The transactional id of the feedback pipeline."""
        return f"{self.run}.join"

    @property
    def learner_id(self) -> str:
        """The learner's transactional id: a second learner fences the first."""
        return f"{self.run}.learner"

    @property
    def curriculum_id(self) -> str:
        """The transactional id of the curriculum: a second one fences the first."""
        return f"{self.run}.curriculum"

    def rollout_id(self, share: int) -> str:
        """The transactional id of one share of the rollout pipeline."""
        return f"{self.run}.rollout.{share}"

    def specs(self, partitions: int, replication: int = 1) -> list["TopicSpec"]:
        """Every topic with its partitions and settings.

        Args:
            partitions: of the divided ones.
            replication: copies of each.
        """
        large = {"max.message.bytes": str(MAX_TRAJECTORY_BYTES + _MARGIN_BYTES)}
        prompts = {"max.message.bytes": str(MAX_PROMPTS_MESSAGE_BYTES)}
        specs = [
            TopicSpec(self.prompts, partitions, {**prompts, **_FOREVER}),
            TopicSpec(self.trajectories, partitions, {**large, **_FOREVER}),
            TopicSpec(self.pending, partitions, {**large, **_FOREVER, **_APPENDED}),
            TopicSpec(self.feedback, partitions, {**_FOREVER, **_APPENDED}),
            TopicSpec(self.exchanges, partitions, {**prompts, **_FOREVER}),
            TopicSpec(self.outcomes, 1, {**large, **_FOREVER}),
            TopicSpec(self.weights, 1, _FOREVER),
            TopicSpec(self.admission, 1, _FOREVER),
            TopicSpec(self.workers, 1, _BRIEFLY),
            TopicSpec(self.ledger, 1, _FOREVER),
            TopicSpec(self.evals, 1, _FOREVER),
            TopicSpec(self.dead_letters, 1, _FOREVER),
        ]
        return _kept_by_most(specs, replication)


@dataclass(frozen=True, slots=True)
class FederationTopics:
    """The names of all topics of one federation, at its own broker. Example: ``FederationTopics("f").sites``."""

    federation: str

    @property
    def sites(self) -> str:
        """Which sites are there."""
        return f"{self.federation}.sites"

    @property
    def updates(self) -> str:
        """What sites learned."""
        return f"{self.federation}.updates"

    @property
    def rounds(self) -> str:
        """What the coordinator asked for, and what it merged."""
        return f"{self.federation}.rounds"

    @property
    def weights(self) -> str:
        """Announcements of global versions."""
        return f"{self.federation}.weights"

    @property
    def coordinator_id(self) -> str:
        """The coordinator's transactional id: a second one fences the first."""
        return f"{self.federation}.coordinator"

    def specs(self, replication: int = 1) -> list["TopicSpec"]:
        """Every topic with its settings; each has one partition, so that everybody reads the same order.

        Args:
            replication: copies of each.
        """
        large = {"max.message.bytes": str(MAX_TRAJECTORY_BYTES + _MARGIN_BYTES)}
        specs = [
            TopicSpec(self.sites, 1, {**_BRIEFLY, **_APPENDED}),
            TopicSpec(self.updates, 1, _FOREVER),
            TopicSpec(self.rounds, 1, {**large, **_FOREVER}),
            TopicSpec(self.weights, 1, _FOREVER),
        ]
        return _kept_by_most(specs, replication)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be. All have ``cleanup.policy=delete``; nothing is ever compacted away."""

    name: str
    partitions: int
    settings: dict[str, str]
    copies: int = 1
    """Of every partition."""


def copies_that_agree(replication: int) -> int:
    """How many of ``replication`` copies must have a record before it is acknowledged.

    Two where there are three or more: the one that acknowledged may be lost, and brokers may go while others write. One
    where there are fewer: two of two would leave nobody who could write when one broker goes.
    """
    return 2 if replication > 2 else 1


def _kept_by_most(specs: list[TopicSpec], replication: int) -> list[TopicSpec]:
    agree = copies_that_agree(replication)
    kept = {MIN_IN_SYNC: str(agree)} if agree > 1 else {}
    return [TopicSpec(spec.name, spec.partitions, {**spec.settings, **kept}, replication) for spec in specs]
