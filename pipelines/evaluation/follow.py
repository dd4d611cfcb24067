"""Evaluates a run while it trains: every so many weight versions, and the last one.

    announcement ─► held in the store ─► measured ─► best so far? ─► evals topic ─► hold moved to the best

It only reads what the learner writes and asks the workers what anybody may ask them, so a run trains the same
whether it is evaluated or not. A version that cannot be evaluated is passed over; the last one may not be.
"""

import time
from contextlib import ExitStack
from typing import Final

import structlog

from pipelines.evaluation.announcements import Announcements, read_results, standing
from pipelines.evaluation.holds import Holds
from pipelines.evaluation.measure import Measure, write_results
from pipelines.evaluation.prompts import HeldOut
from pipelines.evaluation.relay import Relay
from schemas.config import RunConfig
from schemas.errors import EngineError
from schemas.evals import EvalResult
from schemas.weights import WeightVersion

_LOOK_S: Final = 0.5
"""Pause between two looks for a new version."""
_LOG = structlog.get_logger(__name__)


class Evaluator:
    """Follows one run with one set of prompts.

    Args:
        config: of the run.
        held_out: prompts that are never trained.
        opened: closes the connections.

    Raises:
        UserError: what the user can mend, in words.
    """

    def __init__(self, config: RunConfig, held_out: HeldOut, opened: ExitStack) -> None:
        self._config = config
        self._measure = Measure(config, held_out)
        self._announcements = opened.enter_context(Announcements(config))
        self._relay = Relay(config) if config.evaluation.worker_run else None
        self._holds = Holds(config.weights.root, config.evaluation.name)
        self._asked, self._best = standing(read_results(config), config.evaluation.name)
        self._hold()

    def follow(self) -> None:
        """Returns when the last version of the run is evaluated.

        Raises:
            EngineError: that could not be done.
        """
        while not self.advance():
            time.sleep(_LOOK_S)

    def advance(self) -> bool:
        """Evaluates what is due by now; True once nothing will be any more.

        Raises:
            EngineError: the last version could not be evaluated.
        """
        self._announcements.read_on()
        due = self._due()
        if due:
            self._evaluate(due)
        return due is None and self._announcements.is_over

    def _due(self) -> WeightVersion | None:
        newest = self._announcements.newest
        if newest is None or newest.version <= self._asked:
            return None
        is_turn = not self._asked or newest.version >= self._asked + self._config.evaluation.every
        return newest if is_turn or self._announcements.is_over else None

    def _evaluate(self, announced: WeightVersion) -> None:
        self._hold(announced.version)
        self._asked = announced.version
        started = time.monotonic()
        try:
            if self._relay:
                self._relay.announce(announced)
            results = self._judge(self._measure.of(announced.version))
        except EngineError as error:
            if self._announcements.is_over:
                raise
            _LOG.error("version_not_evaluated", version=announced.version, reason=str(error))
            return
        finally:
            self._hold()
        write_results(self._config, results)
        _LOG.info("evaluated", step=announced.step, seconds=round(time.monotonic() - started, 1), **_show(results))

    def _judge(self, results: list[EvalResult]) -> list[EvalResult]:
        """Marks the first result if its version is the best one so far, which is held from now on."""
        first, *others = results
        if not first.beats(self._best):
            return results
        self._hold(first.version)
        if not self._holds.has(first.version):
            _LOG.warning("best_version_gone", version=first.version, value=first.value)
            return results
        self._best = first.marked(self._best)
        return [self._best, *others]

    def _hold(self, version: int | None = None) -> None:
        """Holds the best version and one more in the store."""
        self._holds.hold_only(self._best.version if self._best else None, version)


def _show(results: list[EvalResult]) -> dict[str, object]:
    first = results[0]
    figures = {f"{each.metric}@{each.temperature:g}" + f"/{each.task}": round(each.value, 4) for each in results}
    return {"version": first.version, "version_max": first.version_max, "best": first.best, **figures}


def follow(config: RunConfig, held_out: HeldOut) -> None:
    """Evaluates a run until it has ended; see :class:`Evaluator`."""
    with ExitStack() as opened:
        Evaluator(config, held_out, opened).follow()
