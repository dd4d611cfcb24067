"""Beam's view of the pools: an unbounded source of outcomes, in order of completion.

One restriction a share. The reader owns nothing: what is finished and not committed lies in the
pool, and a new reader starts with all of it, because bundles of a restriction follow one another and
what an earlier one delivered is committed by the time the next begins (or was not, and has to be
delivered again). So the checkpoint mark is empty, and Beam finds its parked reader by it every time.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from apache_beam.coders import PickleCoder
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from schemas.config import RunConfig
from transforms.generation.outcome import Outcome
from transforms.generation.pool import Finished, pool_of

_FIRST_WAIT_S: Final = 0.2
"""How long a bundle waits for its first outcome; more would hold up checkpoints and watermarks."""
_IDLE_LAG_S: Final = 0.5
"""How far the watermark of an idle share stays behind the clock: longer than a prompt takes from
Kafka's clock to its pool."""
_WATERMARK_AGE_S: Final = 0.1


class Nothing(CheckpointMark):  # type: ignore[misc]
    """The position of a reader: Kafka has it, so there is none."""


class OutcomeReader(UnboundedReader):  # type: ignore[misc]
    """Takes outcomes from one share's pool."""

    def __init__(self, config: RunConfig, share: int) -> None:
        self._config = config
        self._share = share
        self._bundle_is_empty = True
        self._watermark = Timestamp(0)
        self._watermark_read_s = float("-inf")

    def start(self) -> bool:
        """Begins with everything that is finished and not committed."""
        self._pool = pool_of(self._config, self._share)
        self._pool.offer_again()
        return self.advance()

    def advance(self) -> bool:
        """Moves to the next outcome; waits for the first of a bundle only."""
        finished = self._pool.take(_FIRST_WAIT_S if self._bundle_is_empty else 0.0)
        if finished is None:
            return False
        self._current: Finished = finished
        self._bundle_is_empty = False
        return True

    def get_current(self) -> Outcome:
        """The outcome."""
        return self._current.outcome

    def get_current_timestamp(self) -> Timestamp:
        """When its prompt was written."""
        return Timestamp(self._current.prompt_at.timestamp())

    def get_watermark(self) -> Timestamp:
        """The time of the oldest prompt at work, or a little before now; the end of time once drained.

        Beam asks for it with every record, so it is looked up ten times a second at most.
        """
        if self._pool.is_drained():
            return MAX_TIMESTAMP
        now = time.monotonic()
        if now - self._watermark_read_s > _WATERMARK_AGE_S:
            oldest = self._pool.oldest_prompt_at()
            latest = time.time() - _IDLE_LAG_S
            self._watermark = Timestamp(min(latest, oldest.timestamp()) if oldest else latest)
            self._watermark_read_s = now
        return self._watermark

    def get_checkpoint_mark(self) -> CheckpointMark:
        """Ends the bundle."""
        self._bundle_is_empty = True
        return Nothing()


@dataclass(frozen=True)
class OutcomeSource(UnboundedSource):  # type: ignore[misc]
    """The outcomes of one share, or of all before the split."""

    config: RunConfig
    share: int | None = None

    def split(self, desired_num_splits: int, options: Any = None) -> Iterable["OutcomeSource"]:  # noqa: ARG002 - Beam's
        """One source a share, whatever Beam desires: the pool is the parallelism."""
        if self.share is not None:
            return [self]
        return [replace(self, share=share) for share in range(self.config.rollout.shares)]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> OutcomeReader:  # noqa: ARG002 - Beam's
        """A view on the share's pool."""
        if self.share is None:
            raise ValueError("a runner has to split this source before it reads it")
        return OutcomeReader(self.config, self.share)

    def get_checkpoint_mark_coder(self) -> PickleCoder:
        """The same bytes for every mark."""
        return PickleCoder()
