"""Score: finished groups get their rewards.

    PCollection[Outcome] ──► Score ──► PCollection[Outcome]

Rewards are computed in killable processes (:mod:`transforms.rewards.processes`) from the moment that
a group is finished, and collected when its bundle ends. A group is one task; if that does not come back, each of its
samples is one, so that only the sample that hangs or kills its process goes without a reward. A reward that could not
be computed is null with a reason, never a number. Rewards that ask somebody else run in an event loop instead
(:mod:`transforms.rewards.asking`), and a group is not ready to be collected before it is judged. A group without any
reward becomes a dead letter. Groups that wait for feedback pass through, with what a function says of them where the
prompt wants both. Environments have rewarded their samples before, or failed them: what such a sample would get from a
function does not count.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
import structlog
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from schemas import traces
from schemas.config import RewardsConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import ProcessDied
from schemas.prompts import ENVIRONMENT_REWARD, FEEDBACK_REWARD, VERIFIABLE, VERIFIABLE_SHARE, RewardSpec
from schemas.trajectories import Group, Sample
from transforms import metrics
from transforms.carried import NOTHING, Carried
from transforms.generation.outcome import Outcome
from transforms.rewards.asked import add_up, is_asked, pieces_of
from transforms.rewards.asking import Asking
from transforms.rewards.processes import RewardProcesses
from transforms.rewards.scoring import SampleScore, failed, score_samples

_LOG = structlog.get_logger(__name__)


def apply_scores(run: RunConfig, group: Group, scores: Sequence[SampleScore]) -> Outcome:
    """The group with its rewards, or a dead letter if no sample got one."""
    scores = [
        given_score(sample) if sample.reward_error else score
        for sample, score in zip(group.samples, scores, strict=True)
    ]
    if all(score.value is None for score in scores):
        errors = [score.error or "" for score in scores]
        reasons = [error.split(":", 1)[0] for error in errors]
        reason = next((reason for reason in reasons if reason.endswith("_timeout")), reasons[0])
        return DeadLetter.of("score", reason, errors[0], (run.topics.prompts, *group.id), group.value)
    samples = tuple(
        replace(sample, reward=score.value, reward_parts=score.parts, reward_error=score.error)
        for sample, score in zip(group.samples, scores, strict=True)
    )
    return replace(group, samples=samples)


def blend_later(group: Group, scores: Sequence[SampleScore]) -> Group:
    """The group with the part of its rewards that does not depend on people; where that failed, they alone decide."""
    share = group.prompt.feedback.share
    samples = tuple(
        replace(
            sample, reward_parts={VERIFIABLE: score.value, VERIFIABLE_SHARE: share} if score.value is not None else {}
        )
        for sample, score in zip(group.samples, scores, strict=True)
    )
    return replace(group, samples=samples)


def given_score(sample: Sample) -> SampleScore:
    """What the sample's environment gave."""
    return SampleScore(sample.reward, sample.reward_parts, sample.reward_error)


class _Piece(NamedTuple):
    """A reward that is being computed for a group: the prompt's, or a part of it."""

    spec: RewardSpec
    future: Future[list[SampleScore]]


class Scorer:
    """Scores groups in the reward processes: begun as soon as a group is finished, collected by its bundle.

    A bundle that waited for its rewards would keep its runner busy all the while, so the pool begins
    them when the engine's answer is there. What was begun is remembered until it is collected; a group
    that Beam delivers again is scored again.
    """

    def __init__(self, processes: RewardProcesses, asking: Asking | None = None) -> None:
        self._processes = processes
        self._asking = asking or Asking(RewardsConfig())
        self._begun: dict[str, list[_Piece]] = {}
        """By attempt."""

    def begin(self, outcome: Outcome) -> "Future[list[SampleScore]] | None":
        """Starts to score a group that a function scores, unless it was begun.

        Returns:
            Null, or what is done once nobody outside is waited for: until then no bundle should hold it.
        """
        if not isinstance(outcome, Group) or not (spec := outcome.prompt.function):
            return None
        return _all_done([piece.future for piece in self._pieces(outcome, spec) if is_asked(piece.spec.name)])

    def forget(self, outcome: Outcome) -> None:
        """Lets go of what was begun and will not be collected."""
        if isinstance(outcome, Group):
            for piece in self._begun.pop(outcome.samples[0].attempt_id, ()):
                piece.future.cancel()

    def _pieces(self, group: Group, spec: RewardSpec) -> "list[_Piece]":
        attempt = group.samples[0].attempt_id
        if attempt not in self._begun:
            self._begun[attempt] = [self._begin(piece, group) for piece in pieces_of(spec)]
        return self._begun[attempt]

    def _begin(self, spec: RewardSpec, group: Group) -> "_Piece":
        asks = is_asked(spec.name)
        future = _timed(self._asking.submit(spec, group)) if asks else self._submit(spec, group.samples)
        return _Piece(spec, _traced(future, spec, group) if group.trace else future)

    def finish(self, run: RunConfig, outcome: Outcome) -> Outcome:
        """The outcome with its rewards; one that needs none passes through."""
        if not isinstance(outcome, Group):
            return outcome
        name, spec = outcome.prompt.reward.name, outcome.prompt.function
        if name == ENVIRONMENT_REWARD:
            return apply_scores(run, outcome, [given_score(sample) for sample in outcome.samples])
        if spec is None:
            return outcome
        pieces = self._pieces(outcome, spec)
        scores = add_up([each.spec for each in pieces], [self._collect(each, outcome) for each in pieces])
        _count(spec.name, scores)
        self._begun.pop(outcome.samples[0].attempt_id, None)  # another bundle may have had the same group
        return blend_later(outcome, scores) if name == FEEDBACK_REWARD else apply_scores(run, outcome, scores)

    def _submit(self, spec: RewardSpec, samples: Sequence[Sample]) -> "Future[list[SampleScore]]":
        return _timed(self._processes.submit(score_samples, spec, tuple(samples)))

    def _collect(self, piece: "_Piece", group: Group) -> list[SampleScore]:
        """Waits for the scores of a group; if they do not come, tries each sample alone."""
        scores, error = _result(piece.future)
        if scores is not None:
            return scores
        _LOG.warning("group_not_scored", group=str(group.id), reward=piece.spec.name, error=error)
        return self._after(error, piece.spec, group.samples)

    def _after(self, error: tuple[str, str] | None, spec: RewardSpec, samples: Sequence[Sample]) -> list[SampleScore]:
        """Who asks has tried each sample alone already."""
        if is_asked(spec.name):
            return [failed(*(error or ("reward_error", "no score")))] * len(samples)
        return self.score_alone(spec, samples)

    def score_alone(self, spec: RewardSpec, samples: Sequence[Sample]) -> list[SampleScore]:
        """Scores each sample as a task of its own: what happens to one does not touch the others."""
        futures = [self._submit(spec, [sample]) for sample in samples]
        return [_only(future) for future in futures]


_SCORERS: dict[tuple[str, str], Scorer] = {}
_LOCK = threading.Lock()


def scorer_of(config: RewardsConfig, model: str = "") -> Scorer:
    """The scorer of this process; its processes start at the first call.

    Args:
        config: of rewards.
        model: directory of the model that answers; reward models with its vocabulary read its token ids.

    Raises:
        ConfigError: the key of a judge or a reward model is not in the environment.
    """
    key = (config.model_dump_json(), model)
    with _LOCK:
        if key not in _SCORERS:
            _SCORERS[key] = Scorer(RewardProcesses(config), Asking(config, model))
        return _SCORERS[key]


def _all_done(futures: "Sequence[Future[list[SampleScore]]]") -> "Future[list[SampleScore]] | None":
    """The future that is done when all are; null if there is none."""
    if len(futures) < 2:
        return futures[0] if futures else None
    last: Future[list[SampleScore]] = Future()
    left = set(futures)
    lock = threading.Lock()

    def count(future: "Future[list[SampleScore]]") -> None:
        with lock:
            left.discard(future)
            if left:
                return
        if last.set_running_or_notify_cancel():
            last.set_result([])

    for future in futures:
        future.add_done_callback(count)
    return last


def _timed(future: "Future[list[SampleScore]]") -> "Future[list[SampleScore]]":
    started = time.monotonic()
    future.add_done_callback(lambda _: metrics.SCORE_SECONDS.observe(time.monotonic() - started))
    return future


def _traced(future: "Future[list[SampleScore]]", spec: RewardSpec, group: Group) -> "Future[list[SampleScore]]":
    """Records how long a reward took, once it is there."""
    span = traces.Span(traces.below(group.trace), "score", time.time(), attributes={"reward": spec.name})

    def record(done: "Future[list[SampleScore]]") -> None:
        span.ended_s = time.time()
        error = None if done.cancelled() else done.exception()
        span.fault = "cancelled" if done.cancelled() else traces.fault_of(error) if error else None
        traces.record(span)

    future.add_done_callback(record)
    return future


def _only(future: "Future[list[SampleScore]]") -> SampleScore:
    scores, error = _result(future)
    return scores[0] if scores else failed(*(error or ("reward_error", "no score")))


def _result(future: "Future[list[SampleScore]]") -> tuple[list[SampleScore] | None, tuple[str, str] | None]:
    try:
        return future.result(), None
    except TimeoutError as error:
        return None, ("reward_timeout", str(error))
    except ProcessDied as error:
        return None, ("reward_error", str(error))
    except Exception as error:  # noqa: BLE001 - the reward call is a seam: SystemExit, unpicklable results, ...
        return None, ("reward_error", f"{type(error).__name__}: {error}")


def _count(reward: str, scores: Sequence[SampleScore]) -> None:
    for score in scores:
        if score.error is None:
            metrics.SAMPLES_SCORED.labels(reward).inc()
        else:
            metrics.REWARD_FAILURES.labels(reward, score.error.split(":", 1)[0]).inc()


class ScoreFn(beam.DoFn):  # type: ignore[misc]
    """Begins each group as it comes, if the pool has not, and collects the bundle's scores when it ends."""

    def __init__(self, config: RunConfig, carried: Carried = NOTHING) -> None:
        self._config, self._carried = config, carried

    def setup(self) -> None:
        """Takes the scorer of this pipeline process."""
        here = self._carried.here(self._config)
        self._scorer = scorer_of(here.rewards, here.model.path)

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._waiting: list[tuple[Outcome, beam.utils.timestamp.Timestamp]] = []

    def process(self, outcome: Outcome, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        """Begins it."""
        self._scorer.begin(outcome)
        self._waiting.append((outcome, timestamp))

    def finish_bundle(self) -> Any:
        """Emits all of the bundle, in the order it came."""
        for outcome, timestamp in self._waiting:
            yield WindowedValue(self._scorer.finish(self._config, outcome), timestamp, (GlobalWindow(),))


class Score(beam.PTransform):  # type: ignore[misc]
    """Gives every group its rewards."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, outcomes: PCollection[Outcome]) -> PCollection[Outcome]:
        """Wires."""
        return outcomes | beam.ParDo(ScoreFn(self._config, Carried.of(self._config))).with_output_types(Outcome)
