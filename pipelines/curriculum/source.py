"""Draws prompts as long as few of them wait to be admitted, until there are enough or it is told to end.

    Source ──► fence older ones ──► read the log ──┐
                                                   ▼
               results, frontier ◄── Reader.read_on ──► room? ──► Deck.draw ──► Writer.write ──► History.note_prompt
                                           ▲                                                              │
                                           └──────────────────────────────────────────────────────────────┘

All state is the log: a source that is started anew, after a kill or because Kafka failed, reads what was written and
goes on with the next number. The prompt of a number depends on the seed, the number, the pools and what was in the log
when it was drawn, and on nothing else.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from pipelines.curriculum.history import MARK, History, Reader
from pipelines.curriculum.report import Window, summary
from pipelines.curriculum.selection import Deck, Pool
from pipelines.curriculum.settings import Selection
from pipelines.curriculum.writer import Numbered, Writer
from pipelines.local.supervisor import signals_go_to
from schemas.config import RunConfig
from schemas.errors import BrokerError, RunError
from schemas.prompts import Prompt

_LOOK_S: Final = 0.2
"""Pause between two looks at the log."""
_REPORT_S: Final = 30.0
"""Between two lines about what was drawn."""
_MOST: Final = 1000
"""Prompts in one transaction."""
_STEPS_AHEAD: Final = 2
_PATIENCE_S: Final = 300.0
"""How long Kafka may fail, or take nothing, before a source that has worked gives up."""
_PAUSE_S: Final = 1.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Order:
    """What is to be drawn."""

    pools: tuple[Pool, ...]
    selection: Selection = field(default_factory=Selection)
    seed: int = 0
    ahead: int = 16
    """Prompts that may wait to be admitted."""
    prompts: int | None = None
    """How many in all, those of earlier starts included; null for as many as there is room for."""


def default_ahead(config: RunConfig) -> int:
    """Two steps' groups: one for the step that begins, one for what is dropped meanwhile and replaced at once."""
    return _STEPS_AHEAD * config.learner.groups_per_step


class Source:
    """One start of a curriculum: from the log as it is, for as long as Kafka works.

    Args:
        config: of the run.
        order: what is to be drawn; its pools are left as they are.
        window: is told what happens.

    Raises:
        BrokerError: Kafka cannot be reached, or has no such run.
    """

    def __init__(self, config: RunConfig, order: Order, window: Window) -> None:
        self._order, self.window = order, window
        self.pools = [replace(pool) for pool in order.pools]
        self._history = History(self.pools, order.selection)
        with ExitStack() as opened:
            self._writer = Writer(config)  # fences older ones: what they had open is over before the log is read
            opened.callback(self._writer.close)
            self._reader = Reader(config, self._history, opened)
            self.close = opened.pop_all().close

    @property
    def written(self) -> int:
        """Prompts in all."""
        return self._history.number

    @property
    def is_done(self) -> bool:
        """Whether there are enough."""
        return self._order.prompts is not None and self.written >= self._order.prompts

    def advance(self) -> int:
        """Reads what is new and writes what there is room for; returns how many prompts.

        Raises:
            FencedError: a newer curriculum has taken over.
            BrokerError: Kafka failed, and whether the prompts are in the log has to be read there.
            RunError: no prompt can be drawn, now or ever.
        """
        self.window.add(self._reader.read_on(), self._order.selection)
        batch = self._draw(self._room())
        if batch:
            with _uninterrupted():
                self._write(batch)
        return len(batch)

    def _write(self, batch: list[Numbered]) -> None:
        places = self._writer.write(batch, self._reader.partitions)
        for place, prompt in zip(places, batch, strict=True):
            self._history.note_prompt(place, prompt.prompt_id, prompt.number)
        self.window.drawn.update(prompt.pool for prompt in batch)

    def _room(self) -> int:
        left = _MOST if self._order.prompts is None else self._order.prompts - self.written
        return max(0, min(left, self._order.ahead - self._history.waiting, _MOST))

    def _draw(self, room: int) -> list[Numbered]:
        if not room:
            return []
        deck, batch = Deck(self.pools, self._order.selection, self._history.era), list[Numbered]()
        while len(batch) < room:
            number = self.written + len(batch) + 1
            drawn = deck.draw(self._order.seed, number)
            if drawn is None:
                self._refuse_to_wait_for_nothing(len(batch))
                break
            pool = self.pools[drawn[0]]
            batch.append(_numbered(pool, drawn[1], number))
        return batch

    def _refuse_to_wait_for_nothing(self, drawn: int) -> None:
        if not drawn and not self._history.flying:
            raise RunError("all prompts became dead letters, and none is left to draw; their topic says why")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM waits until it is left, a second one does not.

    A transaction that is left open holds up whoever reads the topic, until the broker gives it up.
    """
    heard = list[int]()

    def hear(number: int) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise KeyboardInterrupt

    try:
        with signals_go_to(hear):
            yield
    finally:
        if heard:
            raise KeyboardInterrupt


def _numbered(pool: Pool, index: int, number: int) -> Numbered:
    prompt = Prompt.decode(pool.lines[index])
    mark = {"number": number, "pass_rate": pool.pass_rate(index)}
    marked = prompt.model_copy(update={"metadata": {**prompt.metadata, MARK: mark}})
    return Numbered(number, pool.name, pool.ids[index], marked.encode())


class Curriculum:
    """A source that outlives failures of Kafka.

    Raises:
        BrokerError: Kafka cannot be reached, or has no such run.
    """

    def __init__(self, config: RunConfig, order: Order) -> None:
        self._config, self._order, self._window = config, order, Window()
        self._source = Source(config, order, self._window)
        self._reported_s = time.monotonic()
        _log.info("curriculum_opened", run=config.name, prompts=self._source.written, ahead=order.ahead)

    def run(self) -> None:
        """Draws until there are enough prompts.

        Raises:
            FencedError: a newer curriculum has taken over.
            BrokerError: Kafka stayed away.
            RunError: no prompt can be drawn, now or ever.
        """
        worked_s = time.monotonic()
        while not self._source.is_done:
            try:
                wrote = self._source.advance()
            except BrokerError as error:
                self._begin_anew(error, worked_s + _PATIENCE_S)
                continue
            worked_s = time.monotonic()
            self._report(_REPORT_S)
            if not wrote:
                time.sleep(_LOOK_S)

    def close(self) -> dict[str, Any]:
        """Closes all connections; returns what was drawn, and what is known of it."""
        self._report(0.0)
        self._source.close()
        return {"run": self._config.name, "prompts": self._source.written, "tasks": summary(self._source.pools)}

    def _begin_anew(self, error: BrokerError, deadline_s: float) -> None:
        """Whatever Kafka took of the last batch: the log says it."""
        self._source.close()
        while time.monotonic() < deadline_s:
            _log.warning("kafka_failed", reason=str(error))
            time.sleep(_PAUSE_S)
            try:
                self._source = Source(self._config, self._order, self._window)
                return
            except BrokerError as again:
                error = again
        raise error

    def _report(self, every_s: float) -> None:
        if self._window.drawn and time.monotonic() >= self._reported_s + every_s:
            _log.info("curriculum", prompts=self._source.written, **self._window.show())
            self._reported_s = time.monotonic()
            self._window = self._source.window = Window()
