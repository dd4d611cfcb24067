"""A site's line to its federation's broker: a thread that outlives whatever happens to the line.

    F.rounds, F.weights ──► Heard: the newest order, the global versions, what became of this site's updates
    heartbeats ──► F.sites        an update that was handed over ──► F.updates, again until the broker has it

Nothing here ends the learner: a broker that is away, or lacks the topics yet, is tried again for ever, with a line in
the log now and then. What was heard before stays good meanwhile.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from schemas.errors import BrokerError, RecordError, StateError
from schemas.federating import SiteConfig
from schemas.federation import (
    CoordinatorStart,
    Merge,
    Order,
    RoundOrder,
    Site,
    SiteUpdate,
    decode_rounds_entry,
)
from schemas.producers import connect_producer
from schemas.reach import is_listening
from schemas.weights import WeightVersion
from trainers.federation.state import NOT_THE_SITES
from trainers.log import CONNECT_TIMEOUT_MS, assign, partitions_of

_log = structlog.get_logger(__name__)
_POLL_MS: Final = 100
_RETRY_S: Final = 1.0
_FATES: Final = 50
"""Of this site's updates: the newest are asked for."""
_REMIND_S: Final = 30.0
"""How often the log repeats that the broker is away."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the coordinator has said so far."""

    start: CoordinatorStart | None = None
    """The newest."""
    order: RoundOrder | None = None
    """The newest, whether its round is over or not."""
    newest: WeightVersion | None = None
    """The newest global version; null before the first."""
    fates: Mapping[int, str] = field(default_factory=dict)
    """``merged``, or why it was left out, by sequence: of this site's newest updates that were dealt with; not of what
    somebody else announced in its name."""

    def order_for(self, site: str) -> tuple[RoundOrder, Order] | None:
        """What the open round asks of a site; null if there is none, or if the site is not asked."""
        if self.order is None or self.newest is None or self.order.base_version != self.newest.version:
            return None  # that round is over, and the next has not begun or is not heard of yet
        found = self.order.sites.get(site)
        return (self.order, found) if found else None


class Link:
    """Listens and speaks, in a thread of its own until :meth:`close`.

    Args:
        config: of the site.
        describe: says what the site has; called by the thread for each heartbeat.
    """

    def __init__(self, config: SiteConfig, describe: Callable[[], Site]) -> None:
        self._config, self._describe = config, describe
        self._changed = threading.Condition()
        self._heard = Heard()
        self._coming = Heard()
        self._positions: dict[Any, int] = {}
        self._outgoing: SiteUpdate | None = None
        self._sent: tuple[str, int] | None = None
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._told_s = -_REMIND_S
        self.fault: str | None = "nothing was heard of it yet"
        """Why the line is down; null while it is not."""
        self._thread = threading.Thread(target=self._run, name="federation", daemon=True)
        self._thread.start()

    @property
    def heard(self) -> Heard:
        """What was heard so far; it does not change afterwards.

        Raises:
            Exception: what has ended the thread.
        """
        if self._failure:
            raise self._failure
        with self._changed:
            return self._heard

    def hand_over(self, update: SiteUpdate) -> None:
        """Has an update announced, as often as it takes; see :meth:`has_sent`. There is one at a time."""
        with self._changed:
            self._outgoing = update

    def has_sent(self, update: SiteUpdate) -> bool:
        """Whether the broker has it."""
        with self._changed:
            return self._sent == update.name

    def wait(self, timeout_s: float) -> None:
        """Returns when something was heard or sent, or after a while."""
        with self._changed:
            self._changed.wait(timeout_s)

    def close(self) -> None:
        """Ends the thread, which says once more what the site has, if the broker answers."""
        self._ended.set()
        self._thread.join(timeout=5)

    # ------------------------------------------------------------------ thread

    def _run(self) -> None:
        from kafka.errors import KafkaError

        while not self._ended.is_set():
            try:
                self._connect()
            except (KafkaError, BrokerError, StateError, OSError) as error:
                self._complain(error)
                self._ended.wait(_RETRY_S)
            except Exception as error:  # noqa: BLE001 - raised again where the learner asks
                self._failure = error
                return

    def _complain(self, error: Exception) -> None:
        self.fault = str(error) or type(error).__name__
        if time.monotonic() - self._told_s > _REMIND_S:
            self._told_s = time.monotonic()
            _log.warning("the federation's broker is away, trying again", federation=self._config.name,
                         bootstrap=self._config.kafka.bootstrap, reason=self.fault)  # fmt: skip

    def _connect(self) -> None:
        from kafka import KafkaConsumer

        if not is_listening(self._config.kafka):
            raise BrokerError("nobody listens there")
        patience = {"bootstrap_timeout_ms": CONNECT_TIMEOUT_MS}
        with (
            closing(KafkaConsumer(**self._config.kafka.consumer_options(), **patience)) as consumer,
            closing(_Producer({**self._config.kafka.producer_options(), **patience})) as producer,
        ):
            topics = self._config.topics
            parts = [part for name in (topics.rounds, topics.weights) for part in partitions_of(consumer, name)]
            try:
                assign(consumer, {part: self._positions.get(part) for part in parts})
            except StateError:  # the topics were made anew
                self._coming, self._positions = Heard(), {}
                raise
            self._serve(consumer, producer)

    def _serve(self, consumer: Any, producer: "_Producer") -> None:
        beat_s = -self._config.heartbeat_s
        ends = consumer.end_offsets(list(consumer.assignment()))
        while not self._ended.is_set():
            found = consumer.poll(timeout_ms=_POLL_MS)
            for partition, records in found.items():
                for record in records:
                    self._take(partition.topic, record)
            self._positions = {part: consumer.position(part) for part in ends}
            if all(self._positions[part] >= end for part, end in ends.items()):
                self._tell(self._coming)  # not before: half of what was said is an order of long ago
            self._send(producer)
            if time.monotonic() - beat_s >= self._config.heartbeat_s:
                beat_s = time.monotonic()
                self._beat(producer)
            self.fault = None
        self._beat(producer)

    def _beat(self, producer: "_Producer") -> None:
        site = self._describe().signed(self._config.name, self._config.signing_key())
        producer.send(self._config.topics.sites, site)

    def _send(self, producer: "_Producer") -> None:
        with self._changed:
            update = self._outgoing
        if update is None:
            return
        producer.send(self._config.topics.updates, update)
        with self._changed:
            self._outgoing, self._sent = None, update.name
            self._changed.notify_all()

    def _tell(self, heard: Heard) -> None:
        with self._changed:
            if heard is not self._heard:
                self._heard = heard
                self._changed.notify_all()

    def _take(self, topic: str, record: Any) -> None:
        try:
            if topic == self._config.topics.weights:
                self._coming = with_version(self._coming, WeightVersion.decode(record.value))
            else:
                self._coming = with_entry(self._coming, decode_rounds_entry(record.value), self._config.site)
        except RecordError as error:
            _log.error("record of the federation cannot be read", topic=topic, offset=record.offset, reason=str(error))


class _Producer:
    """Sends a record and returns when all replicas have it."""

    def __init__(self, options: dict[str, Any]) -> None:
        timeout_ms = options["request_timeout_ms"] * 2
        self._producer = connect_producer(options | {"max_block_ms": timeout_ms})
        self._timeout_s = timeout_ms / 1000

    def send(self, topic: str, record: Site | SiteUpdate) -> None:
        """Raises KafkaError where it cannot."""
        self._producer.send(topic, record.encode(), record.site.encode()).get(timeout=self._timeout_s)

    def close(self) -> None:
        self._producer.close(timeout=1)


def with_version(heard: Heard, announced: WeightVersion) -> Heard:
    """After an announcement of a global version."""
    is_newer = heard.newest is None or announced.version > heard.newest.version
    return replace(heard, newest=announced) if is_newer else heard


def with_entry(heard: Heard, entry: CoordinatorStart | RoundOrder | Merge, site: str) -> Heard:
    """After an entry of ``F.rounds``, as a site understands it."""
    if isinstance(entry, CoordinatorStart):
        return replace(heard, start=entry)
    if isinstance(entry, RoundOrder):
        return replace(heard, order=entry)
    new = {each.sequence: str(each.reason) for each in entry.left_out
           if each.site == site and each.sequence is not None and each.reason not in NOT_THE_SITES}  # fmt: skip
    new = {sequence: fate for sequence, fate in new.items() if sequence not in heard.fates}
    new |= {each.sequence: "merged" for each in entry.merged if each.site == site}
    if not new:
        return heard
    known = sorted({**heard.fates, **new}.items())
    return replace(heard, fates=dict(known[-_FATES:]))
