"""Which version is to be evaluated, and when the run is over: read from the log.

weights topic ──► newest announcement ─┐
ledger topic ───► last step? ──────────┴─► Announcements.due
evals topic ────► what was evaluated before this process started
"""

from contextlib import ExitStack
from typing import Self

from pipelines.log import TopicReader, read_topic
from schemas.config import RunConfig
from schemas.errors import RecordError
from schemas.evals import EvalResult, best_of
from schemas.ledger import StartEntry, StepEntry, decode_entry
from schemas.weights import WeightVersion


class Announcements:
    """Follows what a learner announces. Reading it has no effect on anybody.

    Attributes:
        newest: the newest announcement; null before the first.
        is_over: whether the newest learner has done all its steps.
    """

    def __init__(self, config: RunConfig) -> None:
        self._steps = config.learner.steps
        with ExitStack() as opened:
            self._weights = TopicReader(config.kafka, config.topics.weights)
            opened.callback(self._weights.close)
            self._ledger = TopicReader(config.kafka, config.topics.ledger)
            opened.callback(self._ledger.close)
            self._opened = opened.pop_all()
        self.newest: WeightVersion | None = None
        self.is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read_on(self) -> None:
        """Reads both topics to their present ends; the ledger first, so that a last step's weights are seen with it."""
        for record in self._ledger.read_on():
            self._take_entry(record.value or b"")
        for record in self._weights.read_on():
            self._take_version(record.value or b"")

    def _take_entry(self, value: bytes) -> None:
        try:
            entry = decode_entry(value)
        except RecordError:
            return  # the audit's business
        if isinstance(entry, StartEntry):
            done = entry.continues.step if entry.continues else 0
        elif isinstance(entry, StepEntry):
            done = entry.step
        else:
            return
        self.is_over = done >= self._steps

    def _take_version(self, value: bytes) -> None:
        try:
            announced = WeightVersion.decode(value)
        except RecordError:
            return  # workers pass it over as well
        if self.newest is None or announced.supersedes(self.newest):
            self.newest = announced


def read_results(config: RunConfig) -> list[EvalResult]:
    """All results of a run so far, in the order of the log."""
    return read_topic(config.kafka, config.topics.evals, EvalResult.decode)


def standing(results: list[EvalResult], evaluation: str) -> tuple[int, EvalResult | None]:
    """How far an evaluation came: the newest version that it evaluated, 0 if none, and its best result."""
    mine = [result.version for result in results if result.evaluation == evaluation]
    return max(mine, default=0), best_of(results, evaluation)
