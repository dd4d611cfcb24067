"""Beam's view of the pools: an unbounded source of finished outcomes, in order of completion.

One restriction a share. The reader owns nothing: what is finished and not committed lies in the
pool, and a new reader starts with all of it, because bundles of a restriction follow one another and
what an earlier one delivered is committed by the time the next begins (or was not, and has to be
delivered again). So the checkpoint mark is empty, and Beam finds its parked reader by it every time.

Two habits of Beam 2.77 and Prism shape the rest:

- Opening and closing bundles is what costs: looked for fifty times a second, an outcome that comes six
  times a second took a third of a core. So a reader waits for it, though less than the 100 ms after
  which Prism asks bundles for their progress; after an empty bundle the next one comes later the longer
  nothing has come, or the longer the last one took (:class:`ReadFn`).
- Prism asks bundles that take longer to split, and Beam then computes the progress of the source from
  the mean size of its elements, which is NaN after a bundle of more than 30 (its sampling is restarted
  only by half), and the pipeline fails. So the source has one element a bundle: a batch of outcomes.
"""

import base64
import json
import pickle
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from apache_beam.coders import Coder, PickleCoder, registry
from apache_beam.coders.coder_impl import CallbackCoderImpl
from apache_beam.io.unbounded_source import (
    CheckpointMark,
    UnboundedReader,
    UnboundedSource,
    _ReadFromUnboundedSourceDoFn,
)
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from schemas.config import RunConfig
from transforms.carried import NOTHING, Carried
from transforms.generation.outcome import Outcome
from transforms.generation.pool import Finished, all_pools, pool_of

_PATIENCE_S: Final = 0.08
"""How long a bundle waits for its first outcome; shares of one process may be read one after the other."""
_LULL_SHARE: Final = 0.5
"""The pause before the next look as a share of the time that nothing has come: an outcome after a lull waits half
of it at most, and what looking costs is left to the engine, which on a CPU shares its cores."""
_BUNDLE_FACTOR: Final = 2
"""The pause after a bundle as a multiple of its time: the busier the pipeline, the larger its bundles, and
the less of the machine goes into opening and closing them."""
_LONGEST_PAUSE_FACTOR: Final = 10
_IDLE_LAG_S: Final = 0.5
"""How far the watermark of an idle share stays behind the clock: longer than a prompt takes from
Kafka's clock to its pool."""
_WATERMARK_AGE_S: Final = 0.1
_OUTCOME_BYTES: Final = 4096
"""About what eight answers of 64 tokens take."""


class Batch(tuple[Outcome, ...]):
    """What a bundle is made of: at least one outcome."""

    __slots__ = ()


class BatchCoder(PickleCoder):  # type: ignore[misc]
    """Pickle, without pickling where Beam only wants to know how large a batch is.

    It looks at the first elements of every bundle for its figures, so at each batch, which never leaves its process.
    """

    def _create_impl(self) -> CallbackCoderImpl:
        return CallbackCoderImpl(pickle.dumps, pickle.loads, _roughly_bytes)


def _roughly_bytes(batch: Batch) -> int:
    return _OUTCOME_BYTES * len(batch)


registry.register_coder(Batch, BatchCoder)


class Nothing(CheckpointMark):  # type: ignore[misc]
    """The position of a reader: Kafka has it, so there is none."""


class BatchReader(UnboundedReader):  # type: ignore[misc]
    """Takes batches of outcomes from one share's pool."""

    def __init__(self, config: RunConfig, share: int) -> None:
        self._config = config
        self._share = share
        self._watermark = Timestamp(0)
        self._watermark_read_s = float("-inf")

    def start(self) -> bool:
        """Begins with everything that is finished and not committed."""
        self._pool = pool_of(self._config, self._share)
        self._pool.offer_again()
        return self.advance()

    def advance(self) -> bool:
        """Moves to the next batch; waits a little if nothing is finished."""
        rollout = self._config.rollout
        self._batch: list[Finished] = self._pool.take(rollout.max_bundle_groups, _PATIENCE_S / rollout.shares)
        return bool(self._batch)

    def get_current(self) -> Batch:
        """The batch."""
        return Batch(finished.outcome for finished in self._batch)

    def get_current_timestamp(self) -> Timestamp:
        """When the oldest of its prompts was written."""
        return Timestamp(min(finished.prompt_at for finished in self._batch).timestamp())

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
        """Always the same."""
        return Nothing()


@dataclass(frozen=True)
class BatchSource(UnboundedSource):  # type: ignore[misc]
    """The outcomes of one share."""

    config: RunConfig
    share: int
    carried: Carried = NOTHING
    """The user's files, for machines that have none of them."""

    def __hash__(self) -> int:
        """By which Beam remembers the bytes of a restriction's source, instead of pickling it in every bundle."""
        return hash(self.share)

    def __reduce__(self) -> tuple[Any, ...]:
        """By its coder."""
        return _decoded, (SourceCoder().encode(self),)

    def split(self, desired_num_splits: int, options: Any = None) -> Iterable["BatchSource"]:  # noqa: ARG002 - Beam's
        """Itself, whatever Beam desires: the pool is the parallelism."""
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> BatchReader:  # noqa: ARG002 - Beam's
        """A view on the share's pool."""
        return BatchReader(self.carried.here(self.config), self.share)

    def get_checkpoint_mark_coder(self) -> PickleCoder:
        """The same bytes for every mark."""
        return PickleCoder()


class SourceCoder(Coder):  # type: ignore[misc]
    """The same bytes for equal sources, however often they were decoded, which pickle does not promise.

    Flink finds what is left of a source by them: it keeps that under the bytes of the element that it came from.
    """

    def encode(self, source: BatchSource) -> bytes:
        """As JSON."""
        files = [(name, base64.b64encode(content).decode()) for name, content in source.carried.files]
        return json.dumps([source.config.model_dump_json(), source.share, files]).encode()

    def decode(self, encoded: bytes) -> BatchSource:
        """What was encoded: the same object each time, because every bundle asks and a configuration takes long."""
        return _decoded(encoded)

    def is_deterministic(self) -> bool:
        """Yes."""
        return True


registry.register_coder(BatchSource, SourceCoder)


@lru_cache(maxsize=64)
def _decoded(encoded: bytes) -> BatchSource:
    config, share, files = json.loads(encoded)
    carried = Carried(tuple((name, base64.b64decode(content)) for name, content in files))
    return BatchSource(RunConfig.model_validate_json(config), share, carried)


class ReadFn(_ReadFromUnboundedSourceDoFn):  # type: ignore[misc]
    """Beam's own reading of unbounded sources: one batch a bundle, growing pauses between empty ones."""

    def __init__(self, shortest_pause_s: float) -> None:
        super().__init__(poll_interval=shortest_pause_s, max_records_per_bundle=1)

    @property
    def _poll_interval(self) -> float:
        idle_s = min((pool.idle_s() for pool in all_pools()), default=0.0)
        bundle_s = max((pool.bundle_s for pool in all_pools()), default=0.0)
        return pause_s(self._shortest_s, idle_s, bundle_s)

    @_poll_interval.setter
    def _poll_interval(self, shortest_s: float) -> None:
        self._shortest_s = shortest_s


def pause_s(shortest_s: float, idle_s: float, bundle_s: float) -> float:
    """How long not to look after nothing has come for ``idle_s`` seconds and the last bundle took ``bundle_s``."""
    wanted_s = max(shortest_s, _LULL_SHARE * idle_s, _BUNDLE_FACTOR * bundle_s)
    return min(wanted_s, _LONGEST_PAUSE_FACTOR * shortest_s)
