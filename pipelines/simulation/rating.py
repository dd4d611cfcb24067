"""Raters who follow what a run answers, over Kafka alone, as a program of anybody could.

    {run}.pending ──► an answer ──score──► figures
                          └──judge──► (its user takes their time) ──► {run}.feedback

Started again, it judges again what it has judged, under the same names, which the feedback pipeline counts once.
"""

import heapq
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from statistics import fmean
from typing import Any, Final

from pipelines.client import Client
from pipelines.log import TopicReader
from pipelines.simulation.results import whole
from pipelines.simulation.translators import Opinion, Translators
from schemas.config import RunConfig
from schemas.errors import RecordError
from schemas.feedback import Feedback
from schemas.identity import RolloutId
from schemas.receipts import Receipts
from schemas.trajectories import Sample, decode

_LOOK_S: Final = 0.05
"""Pause between two looks for answers and for judgements that are due."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer."""

    at_s: float
    """Since the start of the simulation."""
    score: float
    """How good it really is, by its task's function."""
    judgements: int
    """That were sent by then."""
    version: int
    """The newest weight version among its tokens."""


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """So many answers, one after the other; all but the mean is of the last."""

    at_s: float
    score: float
    """Mean."""
    judgements: int
    version: int


@dataclass
class Rating:
    """Rates the answers of one run.

    Args:
        config: of the run.
        raters: who judges.
        answers: after so many the simulation ends, once all judgements are sent.
        patience_s: it also ends when no answer has come for so long.
        window: answers over which the mean score is taken.
        name: of the simulation; begins the names of its judgements, so that they count once if it is started again.
    """

    config: RunConfig
    raters: Translators
    answers: int
    patience_s: float
    window: int
    name: str = "rating"
    scored: list[Scored] = field(default_factory=list, init=False)
    sent: dict[str, int] = field(default_factory=lambda: {"thumb": 0, "correction": 0}, init=False)
    """Judgements, by kind."""
    silent: int = field(default=0, init=False)
    """Answers that nobody judges."""
    _waiting: list[tuple[float, int, RolloutId, Opinion]] = field(default_factory=list, init=False)
    """A heap: when each is due, and its number."""
    _numbers: Iterator[int] = field(default_factory=count, init=False)
    _receipts: Receipts | None = field(default=None, init=False)
    _began_s: float = field(default=0.0, init=False)

    def run(self, on_look: Callable[[], object] | None = None) -> dict[str, Any]:
        """Follows the run to the end of the simulation; returns the figures.

        Args:
            on_look: called about twenty times a second.

        Raises:
            BrokerError: Kafka cannot be reached, or did not take a judgement.
            ConfigError: the key of receipts cannot be read.
        """
        key_file = self.config.feedback.key_file
        self._receipts = Receipts.load(key_file) if key_file else None
        self._began_s = time.monotonic()
        kafka = self.config.kafka
        with (
            Client(kafka.bootstrap, self.config.name, kafka.client) as client,
            closing(TopicReader(kafka, self.config.topics.pending)) as reader,
        ):
            while self._goes_on() or self._waiting:
                self._take(reader)
                self._send_due(client)
                if on_look:
                    on_look()
                time.sleep(_LOOK_S)
        return self.figures()

    def _goes_on(self) -> bool:
        last_s = self.scored[-1].at_s if self.scored else 0.0
        return len(self.scored) < self.answers and self._now_s() - last_s < self.patience_s

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _take(self, reader: TopicReader) -> None:
        for sample in _samples(reader):
            score = self.raters.score(sample)
            if score is None or not self._goes_on():
                continue
            now_s = self._now_s()
            self.scored.append(Scored(now_s, score, sum(self.sent.values()), sample.weight_version_max))
            if opinion := self.raters.judge(sample):
                due_s = now_s + opinion.delay_s
                heapq.heappush(self._waiting, (due_s, next(self._numbers), sample.rollout_id, opinion))
            else:
                self.silent += 1
            self._tell()

    def _tell(self) -> None:
        if len(self.scored) % self.window == 0:
            (last,) = windows(self.scored[-self.window :], self.window)
            line = f"{last.at_s:6.0f} s  {len(self.scored):6d} answers  {last.score:.3f}  version {last.version}\n"
            sys.stderr.write(line)

    def _send_due(self, client: Client) -> None:
        due = []
        while self._waiting and self._waiting[0][0] <= self._now_s():
            _, _, rollout, opinion = heapq.heappop(self._waiting)
            due.append(self._judgement(rollout, opinion))
            self.sent[opinion.kind] += 1
        if due:
            client.send_all_feedback(due)

    def _judgement(self, rollout: RolloutId, opinion: Opinion) -> Feedback:
        expires_s = time.time() + self.config.feedback.receipt_s
        return Feedback(
            feedback_id=f"{self.name}/{rollout}",
            rollout_id=str(rollout),
            kind=opinion.kind,
            value=opinion.value,
            user=opinion.user,
            receipt=self._receipts.issue(rollout, opinion.user, expires_s) if self._receipts else None,
        )

    def figures(self) -> dict[str, Any]:
        """What came of it so far, as JSON."""
        found = windows(self.scored, self.window)
        return {
            "answers": len(self.scored),
            "judgements": dict(self.sent),
            "not_judged": self.silent,
            "window": self.window,
            "windows": [asdict(window) for window in found],
            "score_at_first": found[0].score if found else None,
            "score_at_last": found[-1].score if found else None,
            "gained": found[-1].score - found[0].score if found else None,
        }


def _samples(reader: TopicReader) -> Iterator[Sample]:
    """What came since the last look; what cannot be decoded is the audit's business."""
    for record in reader.read_on():
        with suppress(RecordError):
            for samples in decode(record.value, dict(record.headers)):
                yield from samples


def windows(scored: Sequence[Scored], size: int) -> list[ScoredWindow]:
    """Whole windows, in the order of the answers."""
    return [
        ScoredWindow(each[-1].at_s, fmean(one.score for one in each), each[-1].judgements, each[-1].version)
        for each in whole(scored, size)
    ]
