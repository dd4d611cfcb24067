"""JoinFeedback: groups that wait for feedback meet it, in keyed state, by the clock of the topics.

    pending, feedback ──► Read ──► Batch ──┬─► items, by group ──► Join (state, timer) ──┐
                                           └─► refused at once ──────────────────────────┴──► Commit ──► (Kafka)

All decisions are those of :mod:`transforms.feedback.case`. A group is one key; its case is its state, and its timer is
when that has to be looked at next. Commit is keyed too, by one key, so that one writer commits at a time wherever the
runner puts it; Join divides the work over as many workers as the runner has.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import apache_beam as beam
from apache_beam.coders import PickleCoder
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from schemas.config import RunConfig
from schemas.identity import GroupId
from transforms.end_of_stage import EndOfStage
from transforms.feedback import metrics
from transforms.feedback.book import book_of
from transforms.feedback.case import Case, Rules, settle, take, wakes_at
from transforms.feedback.items import Item, Settled
from transforms.feedback.source import Batch, BatchSource, ReadFn
from transforms.generation.tokenizer import Tokenizer

_REFUSED: Final = "refused"
Key = tuple[int, int]
_CASE: Final = ReadModifyWriteStateSpec("case", PickleCoder())
_WAKE: Final = TimerSpec("wake", TimeDomain.WATERMARK)
_ONE: Final = ReadModifyWriteStateSpec("one", PickleCoder())
_CASE_PARAM: Final = beam.DoFn.StateParam(_CASE)
_WAKE_PARAM: Final = beam.DoFn.TimerParam(_WAKE)
_ONE_PARAM: Final = beam.DoFn.StateParam(_ONE)


class UnbatchFn(beam.DoFn):  # type: ignore[misc]
    """Items by their group; what needs no state goes aside."""

    def process(self, batch: Batch) -> Iterator[Any]:
        """One batch."""
        for settled in batch.settled:
            yield beam.pvalue.TaggedOutput(_REFUSED, settled)
        for item in batch.items:
            yield tuple(item.group), item


class JoinFn(beam.DoFn):  # type: ignore[misc]
    """One group after the other: takes its items, and settles it when its time has come."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def setup(self) -> None:
        """Loads the tokenizer that demonstrations need."""
        tokenizer = Tokenizer.load(self._config.model.path)
        self._rules = Rules(self._config.topics, self._config.feedback, tokenizer.encode_answer)

    def process(
        self,
        element: tuple[Key, Item],
        state: Any = _CASE_PARAM,
        timer: Any = _WAKE_PARAM,
    ) -> None:
        """Keeps an item and sets the timer."""
        key, item = element
        before = state.read()
        if before is None:
            metrics.CASES.inc()
        self._keep(take(before or Case(GroupId(*key)), item), state, timer)

    @on_timer(_WAKE)  # type: ignore[untyped-decorator]
    def wake(
        self,
        state: Any = _CASE_PARAM,
        timer: Any = _WAKE_PARAM,
        moment: Any = beam.DoFn.TimestampParam,
    ) -> Iterable[Settled]:
        """Settles what is due."""
        case = state.read()
        if case is None:
            return
        settled, case = settle(case, moment.micros / 1e6, self._rules)
        yield from settled
        if case.is_empty:
            metrics.CASES.dec()
            state.clear()
        else:
            self._keep(case, state, timer)

    def _keep(self, case: Case, state: Any, timer: Any) -> None:
        state.write(case)
        timer.set(Timestamp(micros=math.ceil(wakes_at(case, self._config.feedback) * 1e6)))


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
        keyed = items["items"] | "ByGroup" >> beam.Map(lambda item: item).with_output_types(tuple[Key, Item])
        joined = keyed | "Join" >> beam.ParDo(JoinFn(self._config)).with_output_types(Settled)
        return (joined, items[_REFUSED]) | beam.Flatten()


class Commit(beam.PTransform):  # type: ignore[misc]
    """Ends the pipeline."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, settled: PCollection[Settled]) -> Any:
        """Wires."""
        keyed = settled | "ToOneWriter" >> beam.Map(lambda each: (0, each)).with_output_types(tuple[int, Settled])
        return keyed | "Write" >> beam.ParDo(CommitFn(self._config)).with_output_types(tuple[int, int]) | EndOfStage()
