"""Looks at a run once a second, in two threads: a broker that is away must not hide what the processes say.

TopicsWatcher ──(thread)──► LogView ──┐
                                      ├─► compose ─► Snapshot, and the history of them
Endpoints ──────(thread)──► Readings ─┘
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, get_args

import structlog

from pipelines.tokenizer import load_decoder
from pipelines.top.endpoints import RATE_WINDOW_S, Endpoints, Reading
from pipelines.top.state import Engine, Learner, LearnerState, Process, Snapshot, Stage, Worker
from pipelines.top.topics import LogView, TopicsWatcher
from schemas.config import RunConfig

PAUSE_S: Final = 1.0
"""Between two looks."""
_HISTORY: Final = 900
"""Snapshots that are kept: what has lasted longer is said to have lasted that long."""
_AWAY_AFTER_S: Final = 4.0
"""Silence that is no longer a slow answer, the pause between two looks included."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Watched:
    """The run that is watched.

    Attributes:
        config: name and Kafka of the run; for a run of this machine all of it.
        endpoints: pages of figures, with the process that is expected there.
        is_here: whether the configuration is the run's own, not only its name.
        is_live: False for the log of a run that has ended.
    """

    config: RunConfig
    endpoints: Mapping[str, Process]
    is_here: bool = True
    is_live: bool = True


class Watch:
    """Follows a run while it is open.

    Raises:
        BrokerError: Kafka cannot be reached, or does not have the run's topics.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        steps = watched.config.learner.steps if watched.is_here else None
        self._topics = TopicsWatcher(watched.config, _detokenizer(watched), steps)
        self._endpoints = Endpoints(watched.endpoints)
        self._views: deque[LogView] = deque(maxlen=_HISTORY)
        self._readings: tuple[Reading, ...] = ()
        self._stop = threading.Event()
        self._fault: Exception | None = None
        self._reading_topics = threading.Lock()
        self.history: deque[Snapshot] = deque(maxlen=_HISTORY)
        """Snapshots, the newest last."""

    def __enter__(self) -> Self:
        """Reads the topics to their present ends, once, before it watches them."""
        try:
            self._look_at_topics()
            self._look_at_endpoints()
        except BaseException:
            self._endpoints.close()
            self._topics.close()
            raise
        for name, looks in (("topics", self._follow_topics), ("endpoints", self._follow_endpoints)):
            threading.Thread(target=looks, name=f"top-{name}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()  # a thread that waits for a broker which is away ends with the process
        self._endpoints.close()

    def _follow_topics(self) -> None:
        self._repeat(self._look_at_topics)
        with self._reading_topics:
            self._topics.close()

    def _follow_endpoints(self) -> None:
        self._repeat(self._look_at_endpoints)

    def look(self) -> Snapshot:
        """Reads what there is to read now instead of waiting for the next look, and says what is found."""
        self._look_at_topics()
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """The run as it is now; also added to the history.

        Raises:
            Exception: whatever ended a thread that looks, so that nobody is shown the same for ever.
        """
        if self._fault and not self._stop.is_set():  # else the pool was closed while it looked
            raise self._fault
        found = compose(self._watched, tuple(self._views), self._readings, time.time() - self._topics.heard_at)
        self.history.append(found)
        return found

    def _repeat(self, look: Callable[[], None]) -> None:
        from kafka.errors import KafkaError

        while not self._stop.wait(PAUSE_S):
            try:
                look()
            except (KafkaError, OSError) as error:
                _log.debug("broker_away", error=repr(error))
            except Exception as error:  # noqa: BLE001 - whoever shows the run is to hear of it, see snapshot
                self._fault = error
                return

    def _look_at_topics(self) -> None:
        with self._reading_topics:
            view = self._topics.look()
            self._views.append(view)
        if self._watched.is_live:
            self._endpoints.know(worker.url for worker in view.workers if worker.state == "up")

    def _look_at_endpoints(self) -> None:
        self._readings = self._endpoints.look()


def compose(watched: Watched, views: Sequence[LogView], readings: Sequence[Reading], silent_s: float) -> Snapshot:
    """Puts together what topics and endpoints say.

    Args:
        watched: the run.
        views: of the topics, at least one, the newest last.
        readings: of the endpoints.
        silent_s: since the broker's last answer.
    """
    newest = views[-1]
    by_url = {reading.endpoint.url: reading for reading in readings}
    known = newest.workers if watched.is_live else ()  # what announced itself has ended with its run
    workers = tuple(_worker(worker, by_url.get(f"{worker.url}/metrics")) for worker in known)
    return Snapshot(
        run=watched.config.name,
        at=newest.at if silent_s < _AWAY_AFTER_S else time.time(),
        broker=watched.config.kafka.bootstrap,
        broker_silent_s=silent_s if silent_s >= _AWAY_AFTER_S else 0.0,
        is_live=watched.is_live,
        stages=tuple(_with_rate(stage, views) for stage in newest.stages),
        learner=_learner(newest.learner, readings),
        workers=workers,
        engine=_engine(workers, readings),
        endpoints=tuple(reading.endpoint for reading in readings),
        dead_letters=newest.dead_letters,
        samples=newest.samples,
    )


def _with_rate(stage: Stage, views: Sequence[LogView]) -> Stage:
    newest = views[-1]
    before = next(view for view in views if newest.at - view.at <= RATE_WINDOW_S)
    passed_s = newest.at - before.at
    if passed_s <= 0:
        return stage
    was = next(each.total for each in before.stages if each.name == stage.name)
    return replace(stage, per_s=max(0, stage.total - was) / passed_s)


def _learner(learner: Learner, readings: Sequence[Reading]) -> Learner:
    """What the learner itself tells, where it does."""
    have = _newest(readings, "learner", "asyncflow_learner_groups_waiting")
    if have is None:
        return learner
    pages = [reading.pages[-1] for reading in readings if reading.endpoint.process == "learner" and reading.pages]
    told = [page.by("asyncflow_learner_state", "state") for page in pages]
    state = next((each for each in get_args(LearnerState) if any(page.get(each) for page in told)), None)
    return replace(learner, have=int(have), state=state)


def _worker(worker: Worker, reading: Reading | None) -> Worker:
    if reading is None or not reading.pages:
        return worker
    return replace(
        worker,
        version=int(reading.now("asyncflow_worker_weight_version") or worker.version),
        running=_whole(reading.now("vllm:num_requests_running")),
        queued=_whole(reading.now("vllm:num_requests_waiting")),
        tokens_per_s=reading.rate("vllm:generation_tokens_total"),
        refused=_whole(reading.now("asyncflow_worker_updates_refused_total") or 0),  # not served before the first
    )


def _engine(workers: Sequence[Worker], readings: Sequence[Reading]) -> Engine:
    slots: dict[str, float] = {}
    left_alone: set[str] = set()
    for reading in readings:
        if reading.endpoint.process == "rollout" and reading.pages:
            for state, seconds in reading.grown("asyncflow_rollout_slot_seconds_total", "state").items():
                slots[state] = slots.get(state, 0.0) + seconds
            alone = reading.pages[-1].by("asyncflow_score_service_left_alone", "service")
            left_alone |= {service for service, value in alone.items() if value}
    total = sum(slots.values())
    shares = {state: seconds / total for state, seconds in slots.items()} if total else {}
    up = [count for reading in readings if reading.endpoint.process == "rollout" and reading.pages
          for count in reading.pages[-1].by("asyncflow_rollout_workers_up", "share").values()]  # fmt: skip
    announced = [worker for worker in workers if worker.state == "up"]
    return Engine(
        occupancy=shares.pop("filled", None) if shares else _busy(announced),
        empty={state: share for state, share in shares.items() if share > 0.005},
        tokens_per_s=_tokens_per_s(workers, readings),
        workers_up=int(max(up)) if up else len(announced) if workers else None,  # all shares ask the same ones
        left_alone=tuple(sorted(left_alone)),
    )


def _busy(workers: Sequence[Worker]) -> float | None:
    telling = [worker for worker in workers if worker.running is not None]
    slots = sum(worker.slots for worker in telling)
    return sum(worker.running or 0 for worker in telling) / slots if slots else None


def _tokens_per_s(workers: Sequence[Worker], readings: Sequence[Reading]) -> float | None:
    """Of the engines as they generate; else of finished groups."""
    rates = [worker.tokens_per_s for worker in workers if worker.tokens_per_s is not None]
    if not rates:
        rates = [rate for reading in readings if reading.endpoint.process == "rollout"
                 if (rate := reading.rate("asyncflow_rollout_response_tokens_total")) is not None]  # fmt: skip
    return sum(rates) if rates else None


def _newest(readings: Sequence[Reading], process: Process, name: str) -> float | None:
    found = [value for reading in readings if reading.endpoint.process == process
             if (value := reading.now(name)) is not None]  # fmt: skip
    return sum(found) if found else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _detokenizer(watched: Watched) -> Callable[[list[int]], str]:
    """The model's, if it lies on this machine; else prompts are shown by their names."""
    decoder = load_decoder(watched.config) if watched.is_here else None
    return lambda tokens: decoder.decode(tokens).strip() if decoder else ""
