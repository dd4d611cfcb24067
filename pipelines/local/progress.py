"""A line for every step of a run, as its ledger grows: what ``asyncflow up`` shows.

    ledger ──► step entries from now on ──► "step 3 of 16: reward 0.10, 8 groups trained, 13 dropped (…), 44 s"

The ledger is read by a thread of its own: a broker that is away must not keep the supervisor from starting it again.
"""

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Self

from kafka.errors import KafkaError

from pipelines.log import TopicReader
from pipelines.words import listed
from schemas.config import RunConfig
from schemas.errors import BrokerError, RecordError
from schemas.ledger import StepEntry, decode_entry

_PAUSE_S = 1.0


def describe(entry: StepEntry, steps: int) -> str:
    """One step in a line.

    Args:
        entry: of the ledger.
        steps: how many the run is to do.
    """
    reasons: Counter[str] = Counter(dropped.reason for dropped in entry.dropped)
    dropped = f"{len(entry.dropped)} dropped{f' ({listed(reasons)})' if reasons else ''}"
    reward = entry.metrics.get("reward_mean")
    told = "no reward" if reward is None else f"reward {reward:.2f}"
    seconds = f", {entry.metrics['seconds_step']:.0f} s" if "seconds_step" in entry.metrics else ""
    return f"step {entry.step} of {steps}: {told}, {len(entry.trained)} groups trained, {dropped}{seconds}"


class Progress:
    """Tells the steps that a run does while the context lasts.

    Args:
        config: of the run, whose broker is up.
        write: takes a line.
        since_start: also those that it has done before.
    """

    def __init__(self, config: RunConfig, write: Callable[[str], object], *, since_start: bool = False) -> None:
        self._config, self._write, self._since_start = config, write, since_start
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5 * _PAUSE_S)

    def _follow(self) -> None:
        with (
            suppress(BrokerError, KafkaError),  # then nothing is told; the supervisor says what is wrong
            closing(TopicReader(self._config.kafka, self._config.topics.ledger)) as reader,
        ):
            if not self._since_start:
                list(reader.read_on())
            while not self._ended.wait(_PAUSE_S):
                self._tell(reader)
            self._tell(reader)

    def _tell(self, reader: TopicReader) -> None:
        try:
            for record in reader.read_on():
                entry = decode_entry(record.value or b"")
                if isinstance(entry, StepEntry):
                    self._write(describe(entry, self._config.learner.steps))
        except (KafkaError, RecordError):
            return  # the broker is being started again; what is wrong with a record the audit says
