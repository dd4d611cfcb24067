"""JoinFeedback: groups that wait for feedback meet it, in keyed state, by the clock of the topics.

    pending, feedback ──► Read ──► Batch ──┬─► items, by key ──► Join (state, timer) ──┐
                                           └─► refused at once ────────────────────────┴──► Commit ──► (Kafka)

All decisions are those of :mod:`transforms.feedback.case`. Groups are spread over keys; a key's state is a journal of
its groups' cases, and its timer is when one of them has to be looked at next. A case is settled as of its own moment,
so where the pipeline reads on after a while, timers are set later than that, and one settles what many would. Commit is
keyed too, by one key, so that one writer commits at a time wherever the runner puts it; Join divides the work over as
many workers as the runner has.
"""

import math
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import apache_beam as beam
import structlog
from apache_beam.coders import PickleCoder, StrUtf8Coder
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from schemas.config import RunConfig
from schemas.errors import RecordError
from schemas.identity import GroupId
from transforms.end_of_stage import EndOfStage
from transforms.feedback import metrics
from transforms.feedback.book import book_of
from transforms.feedback.case import Rules
from transforms.feedback.feed import Batch
from transforms.feedback.items import Item, Settled
from transforms.feedback.pace import PACE
from transforms.feedback.shelf import Shelf, pack, unpack
from transforms.feedback.source import BatchSource, ReadFn
from transforms.generation.tokenizer import Tokenizer

_LOG = structlog.get_logger(__name__)
_REFUSED: Final = "refused"
_KEYS: Final = 32
"""Over which groups are spread: on so many workers at most the state is divided."""
_BEHIND_S: Final = 1.0
"""From when on a timer is late: decisions of a pipeline that keeps up are due in a moment, not in the past."""
_SHARE_BEHIND: Final = 0.2
"""How much later a timer is set, as a share of the time that the pipeline is behind."""
_MOST_DECISIONS: Final = 32
"""Of one key in one bundle: nothing of a bundle is written before its end."""
_STAMP: Final = ReadModifyWriteStateSpec("stamp", StrUtf8Coder())
_JOURNAL: Final = BagStateSpec("journal", PickleCoder())
_WAKE: Final = TimerSpec("wake", TimeDomain.WATERMARK)
_ONE: Final = ReadModifyWriteStateSpec("one", PickleCoder())
_STAMP_PARAM: Final = beam.DoFn.StateParam(_STAMP)
_JOURNAL_PARAM: Final = beam.DoFn.StateParam(_JOURNAL)
_WAKE_PARAM: Final = beam.DoFn.TimerParam(_WAKE)
_ONE_PARAM: Final = beam.DoFn.StateParam(_ONE)
_SHELVES: Final[dict[tuple[str, int], Shelf]] = {}
"""Of this process, by run and key. A runner works on a key in one bundle at a time."""


class UnbatchFn(beam.DoFn):  # type: ignore[misc]
    """Items by their key; what needs no state goes aside."""

    def process(self, batch: Batch) -> Iterator[Any]:
        """One batch."""
        if batch.settled is not None:
            yield beam.pvalue.TaggedOutput(_REFUSED, batch.settled)
        by_key: dict[int, list[Item]] = {}
        for item in batch.items:
            by_key.setdefault(key_of(item.group), []).append(item)
        yield from ((key, (len(items), pack(tuple(items)))) for key, items in by_key.items())


def key_of(group: GroupId) -> int:
    """The key that a group shares with others."""
    return zlib.crc32(group.key()) % _KEYS


class _State(NamedTuple):
    """Beam's handles of one key."""

    stamp: Any
    journal: Any
    timer: Any


class JoinFn(beam.DoFn):  # type: ignore[misc]
    """One key after the other: takes its items, and settles what is due; see :mod:`transforms.feedback.shelf`."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def setup(self) -> None:
        """Loads the tokenizer that demonstrations need."""
        self._tokenizer = Tokenizer.load(self._config.model.path)
        self._rules = Rules(self._config.topics, self._config.feedback, self._demonstrate)

    def _demonstrate(self, text: str, prompt_tokens: int) -> tuple[int, ...] | None:
        """A text as an answer of the model, if it can be one and fits its context."""
        try:
            token_ids = self._tokenizer.encode_answer(text)
        except RecordError as error:
            _LOG.warning("no_demonstration", detail=error.detail[:300])
            return None
        room = self._config.worker.max_model_len_tokens - prompt_tokens
        return token_ids if len(token_ids) <= room else None

    def process(
        self,
        element: tuple[int, tuple[int, bytes]],
        stamp: Any = _STAMP_PARAM,
        journal: Any = _JOURNAL_PARAM,
        timer: Any = _WAKE_PARAM,
    ) -> None:
        """Keeps items and sets the timer."""
        key, (items, packed) = element
        PACE.take(items)
        state = _State(stamp, journal, timer)
        shelf = self._shelf(key, state)
        shelf.take(unpack(packed))
        journal.add(shelf.journal_of(packed, items))
        self._keep(key, shelf, state)

    @on_timer(_WAKE)  # type: ignore[untyped-decorator]
    def wake(
        self,
        key: int = beam.DoFn.KeyParam,
        moment: Any = beam.DoFn.TimestampParam,
        stamp: Any = _STAMP_PARAM,
        journal: Any = _JOURNAL_PARAM,
        timer: Any = _WAKE_PARAM,
    ) -> Iterable[Settled]:
        """Settles what is due."""
        state = _State(stamp, journal, timer)
        shelf = self._shelf(key, state)
        settled, changed = shelf.settle(moment.micros / 1e6, self._rules, _MOST_DECISIONS)
        if changed:
            anew, entries = shelf.journal(changed)
            if anew:
                journal.clear()
            for entry in entries:
                journal.add(entry)
        self._keep(key, shelf, state)
        return settled

    def _shelf(self, key: int, state: _State) -> Shelf:
        """Takes the key's shelf from this process if it is as the state says, else rebuilds it."""
        known, newest = _SHELVES.pop((self._config.name, key), None), state.stamp.read() or ""
        if known is None or known.stamp != newest:
            if newest:
                _LOG.warning("shelf_rebuilt", key=key)  # a fault, or the key has moved to this worker
            return Shelf.restored(self._config.feedback, state.journal.read())
        return known

    def _keep(self, key: int, shelf: Shelf, state: _State) -> None:
        """Puts a shelf back, after the state was told of it: one that a fault came in between is rebuilt."""
        state.stamp.write(shelf.stamp)
        if shelf.cases:
            state.timer.set(Timestamp(micros=math.ceil(wake_at(shelf.wakes_at(), time.time()) * 1e6)))
        _SHELVES[self._config.name, key] = shelf
        metrics.CASES.set(sum(len(each.cases) for each in list(_SHELVES.values())))


def wake_at(due_s: float, now_s: float) -> float:
    """When to settle what is due at a moment, in seconds since 1970: then, or with more at once if that is long ago."""
    behind_s = now_s - due_s
    return due_s + _SHARE_BEHIND * behind_s if behind_s > _BEHIND_S else due_s


class CommitFn(beam.DoFn):  # type: ignore[misc]
    """Collects a bundle and writes it whole. The state that it declares makes runners bring all to one writer."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._settled: list[Settled] = []

    def process(self, element: tuple[int, Settled], one: Any = _ONE_PARAM) -> None:  # noqa: ARG002
        """Keeps what was settled."""
        self._settled.append(element[1])

    def finish_bundle(self) -> None:
        """Commits before the bundle ends: a runner that keeps state never knows more than the log."""
        if self._settled:
            book_of(self._config).commit(self._settled)


class JoinFeedback(beam.PTransform):  # type: ignore[misc]
    """From the topics to what is settled."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, start: PBegin) -> PCollection[Settled]:
        """Wires."""
        batches = (
            start
            | "Topics" >> beam.Create([BatchSource(self._config)], reshuffle=False)
            | "Read" >> beam.ParDo(ReadFn()).with_output_types(Batch)
        )
        items = batches | "Unbatch" >> beam.ParDo(UnbatchFn()).with_outputs(_REFUSED, main="items")
        keyed = items["items"] | "Keyed" >> beam.Map(_as_it_is).with_output_types(tuple[int, tuple[int, bytes]])
        joined = keyed | "Join" >> beam.ParDo(JoinFn(self._config)).with_output_types(Settled)
        return (joined, items[_REFUSED]) | beam.Flatten()


def _as_it_is(keyed: tuple[int, tuple[int, bytes]]) -> tuple[int, tuple[int, bytes]]:
    return keyed


def _for_one_writer(settled: Settled) -> tuple[int, Settled]:
    return 0, settled


class Commit(beam.PTransform):  # type: ignore[misc]
    """Ends the pipeline."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, settled: PCollection[Settled]) -> Any:
        """Wires."""
        keyed = settled | "ToOneWriter" >> beam.Map(_for_one_writer).with_output_types(tuple[int, Settled])
        return keyed | "Write" >> beam.ParDo(CommitFn(self._config)).with_output_types(tuple[int, int]) | EndOfStage()
