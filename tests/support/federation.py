"""An instrument that plays the coordinator of a federation, on a real broker: it merges when it is told to.

    federation = Federation(bootstrap, directory, model_dir)     # topics, store, global version 1
    federation.order("north", steps=2)                           # a round
    federation.updates()                                         # what sites announced, each once
    federation.merge()                                           # FedAvg by samples, the next global version

It never stands in for ``asyncflow federate`` where that is what is tested or measured.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from safetensors.numpy import load_file, save_file

from schemas.config import KafkaConfig
from schemas.federation import (
    CoordinatorStart,
    LeftOutUpdate,
    Merge,
    MergedUpdate,
    Order,
    RoundOrder,
    Site,
    SiteUpdate,
    update_path,
    weights_root,
)
from schemas.manifests import MANIFEST_NAME, Manifest, describe, sha256
from schemas.records import now
from schemas.topics import FederationTopics
from schemas.weights import WeightVersion, version_path
from tests.support.trajectories import wait_until
from trainers.federation.codecs import decode
from trainers.federation.layout import Layout


@dataclass
class Federation:
    """A federation with version 1, and nobody in it."""

    bootstrap: str
    directory: Path
    model: Path
    """Of version 1."""
    name: str = field(default_factory=lambda: f"fed-{uuid4().hex[:8]}")
    asynchronous: bool = False
    version: int = 0
    round: int = 0
    merged: dict = field(default_factory=dict)
    """Offset of each update that was merged, by site and sequence."""

    def __post_init__(self):
        self.kafka, self.topics = KafkaConfig(bootstrap=self.bootstrap), FederationTopics(self.name)
        self.store = str(self.directory / self.name)
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        admin.create_topics([NewTopic(name=spec.name, num_partitions=1, replication_factor=1,
                                      topic_configs=spec.settings) for spec in self.topics.specs()])  # fmt: skip
        admin.close()
        self._producer = KafkaProducer(**self.kafka.producer_options())
        self._tell(
            self.topics.rounds,
            CoordinatorStart(generation=1, version=1, strategy="fedavg", asynchronous=self.asynchronous),
        )
        self.publish(load_file(self.model / "model.safetensors"))

    def close(self):
        self._producer.close(timeout=1)

    def section(self, site, **more):
        """What a run's configuration says of it."""
        return {"name": self.name, "site": site, "kafka": {"bootstrap": self.bootstrap}, "store": self.store,
                "heartbeat_s": 0.5, "asynchronous": self.asynchronous, **more}  # fmt: skip

    def _tell(self, topic, record):
        self._producer.send(topic, record.encode(), self.name.encode()).get(timeout=30)

    def publish(self, tensors):
        """The next global version."""
        self.version += 1
        directory = Path(version_path(weights_root(self.store), self.version))
        directory.mkdir(parents=True)
        save_file({name: np.ascontiguousarray(each, np.float32) for name, each in tensors.items()},
                  directory / "model.safetensors")  # fmt: skip
        from fsspec.implementations.local import LocalFileSystem

        entry = describe(LocalFileSystem(), str(directory), "model.safetensors")
        manifest = Manifest(files=(entry,), facts={"kind": "weights", "version": self.version}).encode()
        (directory / MANIFEST_NAME).write_bytes(manifest)
        self._tell(self.topics.weights, WeightVersion(
            version=self.version, step=self.version, generation=1, manifest_sha256=sha256(manifest), dtype="float32",
            base_model=self.model.name))  # fmt: skip
        return self.version

    def weights(self, version=None):
        """The tensors of a global version."""
        directory = Path(version_path(weights_root(self.store), version or self.version))
        return load_file(directory / "model.safetensors")

    def order(self, *sites, steps=2, groups_per_step=None, again=()):
        """Begins a round from the newest version."""
        self.round += 1
        asked = {site: Order(steps=steps, groups_per_step=groups_per_step) for site in sites}
        self._tell(self.topics.rounds, RoundOrder(
            generation=1, round=self.round, base_version=self.version, sites=asked, again=again, quorum=1,
            deadline_at=now() + timedelta(hours=1)))  # fmt: skip

    def records(self, topic):
        """All committed records of a topic."""
        consumer = KafkaConsumer(**self.kafka.consumer_options())
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end, found = consumer.end_offsets([partition])[partition], []
        while consumer.position(partition) < end:
            found += [record for batch in consumer.poll(timeout_ms=100).values() for record in batch]
        consumer.close()
        return found

    def announced(self):
        """All records of updates, those that were announced again too."""
        return [SiteUpdate.decode(record.value) for record in self.records(self.topics.updates)]

    def updates(self):
        """Each update once, by site and sequence."""
        return {update.name: update for update in self.announced()}

    def heard_by(self, site):
        """Returns once a site has heard of all that was said: it looks for orders between heartbeats."""
        before = len(self._beats(site))
        wait_until(lambda: len(self._beats(site)) >= before + 2)

    def _beats(self, site):
        return [each for each in self.records(self.topics.sites) if each.key == site.encode()]

    def sites(self):
        """The newest heartbeat of each site."""
        return {site.site: site for site in (Site.decode(record.value) for record in self.records(self.topics.sites))}

    def numbers(self, update):
        """The tensors of an update, whose hashes are compared."""
        directory = Path(update_path(self.store, update.site, update.sequence))
        manifest = Manifest.decode((directory / MANIFEST_NAME).read_bytes(), update.manifest_sha256)
        value = (directory / manifest.files[0].name).read_bytes()
        assert manifest.files[0].agrees(value)
        assert update.bytes == len(value)
        layout = Layout.of(self.weights(1))
        return layout.unflatten(decode(update.codec, load_file(directory / manifest.files[0].name), layout))

    def merge(self, *, leave_out=()):
        """FedAvg by samples of all that was not merged before; ``leave_out`` has names and their reasons."""
        new = [update for name, update in self.updates().items() if name not in self.merged]
        left = [update for update in new if update.name in dict(leave_out)]
        taken = [update for update in new if update not in left]
        total = sum(update.samples for update in taken)
        base, before = self.weights(), self.version
        mean = {name: np.zeros_like(tensor, np.float64) for name, tensor in base.items()}
        for update in taken:
            for name, tensor in self.numbers(update).items():
                mean[name] += update.samples / total * tensor.astype(np.float64)
        self.publish({name: tensor + mean[name].astype(np.float32) for name, tensor in base.items()})
        parts = tuple(MergedUpdate(site=each.site, sequence=each.sequence, at=0, samples=each.samples,
                                   weight=each.samples / total, norm=0.0) for each in taken)  # fmt: skip
        self._tell(self.topics.rounds, Merge(
            generation=1, round=None if self.asynchronous else self.round, base_version=before, version=self.version,
            strategy="fedavg", merged=parts, position=0, left_out=tuple(
                LeftOutUpdate(site=each.site, sequence=each.sequence, at=0, reason=dict(leave_out)[each.name])
                for each in left)))  # fmt: skip
        self.merged |= dict.fromkeys((update.name for update in new), 0)
        return taken
