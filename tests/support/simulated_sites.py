"""Sites of a federation without engines: they follow its orders and send updates that somebody made up, or learned.

    F.weights ──newest version──► learn(name, row, steps) ──► update in the store ──► F.updates
    F.rounds ───newest order─────────┘

    python -m tests.support.simulated_sites --config federation.toml --sites 1000

plays that many sites whose updates are small random numbers, until it is ended. Everything that travels is what real
sites send; what is simulated is the learning.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from schemas.config import section_of
from schemas.federating import FederationConfig
from schemas.federation import RoundOrder, Site, SiteUpdate, decode_rounds_entry
from schemas.layers import read_layers
from schemas.producers import connect_producer
from schemas.weights import WeightVersion
from trainers.federation import updates
from trainers.federation.codecs import encode
from trainers.federation.versions import Versions
from trainers.log import assign, open_consumer, partitions_of

POLL_S = 0.2


class SimulatedSites:
    """All sites of a federation, with one connection between them.

    Args:
        config: of the coordinator, whose store and broker they use.
        names: of the sites.
        learn: what a site learned, ``(name, row, steps) -> row``, of flat float32 numbers; by default random ones.
        speeds: tokens a second that sites declare, by name.
    """

    def __init__(self, config, names, learn=None, speeds=None, codec="full"):
        self.config, self.names, self.codec = config, list(names), codec
        self.alive = self.names
        self.learn = learn or a_little
        self.speeds = speeds or {}
        self.sequences = dict.fromkeys(self.names, 0)
        self.order = self.announced = None
        self.layout = self.row = self.first = self.taken = None
        self._versions = Versions(config)
        self._producer = connect_producer(config.kafka.producer_options())
        self._consumer = open_consumer(config)
        self._residuals = {}
        self._sent_from = {}
        topics = [config.topics.rounds, config.topics.weights]
        self._rounds, self._weights = (partitions_of(self._consumer, topic)[0] for topic in topics)
        assign(self._consumer, {self._rounds: None, self._weights: None})

    def key(self, name):
        return self.config.key_of(name)

    def beat(self, *names, **facts):
        """Sites say that they are there: those that are named, or all that are alive."""
        for name in names or self.alive:
            told = {"cores": 2, "memory_bytes": 1 << 33, "tokens_s": self.speeds.get(name)} | facts
            site = Site(site=name, **told).signed(self.config.name, self.key(name))
            self._producer.send(self.config.topics.sites, site.encode(), name.encode())
        self._producer.flush()

    def look(self, timeout_s=POLL_S):
        """Reads orders and versions; returns whether there is anything new."""
        polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        for record in polled.get(self._weights, []):
            self.announced = WeightVersion.decode(record.value)
        for record in polled.get(self._rounds, []):
            entry = decode_rounds_entry(record.value)
            if isinstance(entry, RoundOrder):
                self.order = entry
        return bool(polled)

    def await_version(self, version, timeout_s=60):
        """Waits for a global version, and takes it up."""
        self.wait_until(lambda: self.announced is not None and self.announced.version >= version, timeout_s)
        return self.take_up()

    def await_order(self, base_version=None, after_round=0, timeout_s=60):
        """Waits for an order, from a version on."""

        def came():
            return (
                self.order is not None
                and self.order.round > after_round
                and (base_version is None or self.order.base_version == base_version)
            )

        self.wait_until(came, timeout_s)
        return self.order

    def wait_until(self, came, timeout_s=60):
        """Looks, and says that sites are there, until something has come."""
        deadline, beaten = time.monotonic() + timeout_s, 0.0
        while not came():
            assert time.monotonic() < deadline, f"nothing came within {timeout_s} s"
            if time.monotonic() > beaten + 1:
                self.beat()
                beaten = time.monotonic()
            self.look()

    def take_up(self):
        """The newest global version, as numbers."""
        self.layout, self.row = self._versions.read(self.announced)
        self.taken = self.announced.version
        self.first = self.row if self.first is None else self.first
        return self.row

    def send(self, name, delta, announce=True, flush=True, **changes):
        """Writes a site's update and announces it, with other fields than it should have if there are any."""
        sequence = changes.pop("sequence", self.sequences[name] + 1)
        self.sequences[name] = max(sequence, self.sequences[name])
        order = self.order
        told = {
            "round": order.round if order and not self.config.asynchronous else None,
            "base_version": self.taken,
            "samples": 8,
            "tokens": 80,
            "steps": 1,
        } | changes
        arrays, self._residuals[name] = encode(
            self.codec, self.layout.unflatten(np.float32(delta)), self._residuals.get(name), keep_share=0.1
        )
        update = SiteUpdate(site=name, sequence=sequence, codec=self.codec, bytes=0, manifest_sha256="0" * 64, **told)
        update = updates.write(self.config.store, update, arrays).signed(self.config.name, self.key(name))
        self._sent_from[name] = update.base_version
        if announce:
            self.announce(update, flush)
        return update

    def announce(self, update, flush=True):
        """Sends a record, or any bytes."""
        value = update if isinstance(update, bytes) else update.encode()
        key = b"?" if isinstance(update, bytes) else update.site.encode()
        self._producer.send(self.config.topics.updates, value, key)
        if flush:
            self._producer.flush()

    def directory(self, update):
        return Path(self.config.store) / "updates" / update.site / f"{update.sequence:08d}"

    def obey(self, order, each=lambda: None):
        """Every site that an order asks learns and sends.

        Args:
            order: of the coordinator.
            each: called after each site.
        """
        if self.taken != order.base_version:
            self.await_version(order.base_version)
        for name, asked in order.sites.items():
            if self._sent_from.get(name) != order.base_version or name in order.again:
                self.send(name, self.learn(name, self.row, asked.steps), flush=False, samples=8 * asked.steps)
                each()
        self._producer.flush()

    def play(self, until, beat_s=5.0, each=lambda: None):
        """Follows orders until a function says that it is enough; for ``each`` see :meth:`obey`."""
        done, beaten = None, -beat_s
        while not until(self):
            if time.monotonic() > beaten + beat_s:
                self.beat()
                beaten = time.monotonic()
            self.look()
            if self.order is not None and self.order != done and self.announced is not None:
                done = self.order
                self.obey(done, each)

    def close(self):
        self._producer.close(timeout=5)
        self._consumer.close()


def a_little(name, row, steps):
    """Random numbers that differ from site to site."""
    generator = np.random.default_rng(sum(name.encode()) * 1000 + steps)
    return generator.standard_normal(row.size, dtype=np.float32) * np.float32(1e-3)


def federation(file):
    """The configuration of a file."""
    return section_of(FederationConfig, read_layers(Path(file)), str(file))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the coordinator's TOML file")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--codec", default="full")
    options = parser.parse_args()
    names = [f"site-{number:04d}" for number in range(options.sites)]
    sites = SimulatedSites(federation(options.config), names, codec=options.codec)
    sites.play(lambda _: False)


if __name__ == "__main__":
    main()
