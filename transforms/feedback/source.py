"""The feed as Beam's unbounded source: a bundle is one batch.

A reader is a thin view of the process's feed, and its checkpoint mark the feed's place, so a reader that Beam builds
anew finds the feed where it was. See :mod:`transforms.generation.source` for why a bundle has one element.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from apache_beam.coders import Coder, PickleCoder, registry
from apache_beam.io.unbounded_source import (
    CheckpointMark,
    UnboundedReader,
    UnboundedSource,
    _ReadFromUnboundedSourceDoFn,
)
from apache_beam.utils.timestamp import Timestamp

from schemas.config import RunConfig
from transforms.feedback.feed import At, Batch, feed_of

_PAUSE_S: Final = 0.05


@dataclass(frozen=True)
class Mark(CheckpointMark):  # type: ignore[misc]
    """The position of a reader."""

    at: At


class BatchReader(UnboundedReader):  # type: ignore[misc]
    """Takes batches from the feed."""

    def __init__(self, config: RunConfig, at: At | None) -> None:
        self._config, self._at = config, at

    def start(self) -> bool:
        """Finds the feed."""
        self._feed = feed_of(self._config, self._at)
        return self.advance()

    def advance(self) -> bool:
        """Moves to the next batch; waits a little if nothing has come."""
        return self._feed.advance()

    def get_current(self) -> Batch:
        """The batch."""
        return self._feed.batch

    def get_current_timestamp(self) -> Timestamp:
        """When the oldest of its records was appended."""
        return Timestamp(self._feed.batch_s)

    def get_watermark(self) -> Timestamp:
        """Everything that was appended until then has been given."""
        return Timestamp(self._feed.watermark_s)

    def get_checkpoint_mark(self) -> CheckpointMark:
        """The feed's place."""
        return Mark(self._feed.at)


@dataclass(frozen=True)
class BatchSource(UnboundedSource):  # type: ignore[misc]
    """Both topics, undivided: one reader keeps one clock."""

    config: RunConfig

    def __hash__(self) -> int:
        """See :class:`transforms.generation.source.BatchSource`."""
        return hash(self.config.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """By its coder, and to the same object each time."""
        return _decoded, (SourceCoder().encode(self),)

    def split(self, desired_num_splits: int, options: Any = None) -> Iterable["BatchSource"]:  # noqa: ARG002 - Beam's
        """Itself."""
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> BatchReader:  # noqa: ARG002 - Beam's
        """A reader that goes on at the mark, or begins where the book says."""
        return BatchReader(self.config, checkpoint_mark.at if isinstance(checkpoint_mark, Mark) else None)

    def get_checkpoint_mark_coder(self) -> PickleCoder:
        """Equal bytes for equal marks."""
        return PickleCoder()


class SourceCoder(Coder):  # type: ignore[misc]
    """The same bytes for equal sources; see :class:`transforms.generation.source.SourceCoder`."""

    def encode(self, source: BatchSource) -> bytes:
        """As JSON."""
        return source.config.model_dump_json().encode()

    def decode(self, encoded: bytes) -> BatchSource:
        """What was encoded."""
        return BatchSource(RunConfig.model_validate_json(encoded))

    def is_deterministic(self) -> bool:
        """Yes."""
        return True


registry.register_coder(BatchSource, SourceCoder)


@lru_cache(maxsize=64)
def _decoded(encoded: bytes) -> BatchSource:
    return SourceCoder().decode(encoded)


class ReadFn(_ReadFromUnboundedSourceDoFn):  # type: ignore[misc]
    """Beam's own reading of unbounded sources, one batch a bundle."""

    def __init__(self) -> None:
        super().__init__(poll_interval=_PAUSE_S, max_records_per_bundle=1)
