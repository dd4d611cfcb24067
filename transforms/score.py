"""Score: finished groups get their rewards.

    PCollection[Outcome] ──► Score ──► PCollection[Outcome]

Rewards are computed in killable processes (:mod:`transforms.rewards.processes`) while the bundle
goes on, and collected when it ends. A group is one task; if that does not come back, each of its
samples is one, so that only the sample that hangs or kills its process goes without a reward. A
reward that could not be computed is null with a reason, never a number. A group without any reward
becomes a dead letter. Groups that wait for feedback pass through.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import apache_beam as beam
import structlog
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import ProcessDied
from schemas.prompts import FEEDBACK_REWARD, RewardSpec
from schemas.trajectories import Group, Sample
from transforms import metrics
from transforms.generation.outcome import Outcome
from transforms.rewards.processes import RewardProcesses, reward_processes
from transforms.rewards.scoring import SampleScore, failed, score_samples

_LOG = structlog.get_logger(__name__)


def apply_scores(run: RunConfig, group: Group, scores: Sequence[SampleScore]) -> Outcome:
    """The group with its rewards, or a dead letter if no sample got one."""
    if all(score.value is None for score in scores):
        errors = [score.error or "" for score in scores]
        timed_out = any(error.startswith("reward_timeout") for error in errors)
        reason = "reward_timeout" if timed_out else "reward_error"
        return DeadLetter.of("score", reason, errors[0], (run.topics.prompts, *group.id), group.value)
    samples = tuple(
        replace(sample, reward=score.value, reward_parts=score.parts, reward_error=score.error)
        for sample, score in zip(group.samples, scores, strict=True)
    )
    return replace(group, samples=samples)


class Scorer:
    """Scores groups in the reward processes."""

    def __init__(self, processes: RewardProcesses) -> None:
        self._processes = processes

    def submit(self, spec: RewardSpec, samples: Sequence[Sample]) -> "Future[list[SampleScore]]":
        """Starts to score."""
        return self._processes.submit(score_samples, spec, tuple(samples))

    def collect(self, future: "Future[list[SampleScore]]", group: Group) -> list[SampleScore]:
        """Waits for the scores of a group; if they do not come, tries each sample alone."""
        spec = group.prompt.reward
        scores, error = _result(future)
        if scores is None:
            _LOG.warning("group_not_scored", group=str(group.id), reward=spec.name, error=error)
            scores = self.score_alone(spec, group.samples)
        _count(spec.name, scores)
        return scores

    def score_alone(self, spec: RewardSpec, samples: Sequence[Sample]) -> list[SampleScore]:
        """Scores each sample as a task of its own: what happens to one does not touch the others."""
        futures = [self.submit(spec, [sample]) for sample in samples]
        return [_only(future) for future in futures]


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
    """Submits each group as it comes and collects the bundle's scores when it ends."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def setup(self) -> None:
        """Takes the reward processes of this pipeline process."""
        self._scorer = Scorer(reward_processes(self._config.rewards))

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._waiting: list[tuple[Outcome, Future[list[SampleScore]] | None, beam.utils.timestamp.Timestamp]] = []
        self._started = time.monotonic()

    def process(self, outcome: Outcome, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        """Submits a group that a function scores."""
        future = None
        if isinstance(outcome, Group) and outcome.prompt.reward.name != FEEDBACK_REWARD:
            future = self._scorer.submit(outcome.prompt.reward, outcome.samples)
        self._waiting.append((outcome, future, timestamp))

    def finish_bundle(self) -> Any:
        """Emits all of the bundle, in the order it came."""
        for outcome, future, timestamp in self._waiting:
            yield WindowedValue(self._finish(outcome, future), timestamp, (GlobalWindow(),))
        if self._waiting:
            metrics.SCORE_SECONDS.observe(time.monotonic() - self._started)

    def _finish(self, outcome: Outcome, future: "Future[list[SampleScore]] | None") -> Outcome:
        if future is None or not isinstance(outcome, Group):
            return outcome
        return apply_scores(self._config, outcome, self._scorer.collect(future, outcome))


class Score(beam.PTransform):  # type: ignore[misc]
    """Gives every group its rewards."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, outcomes: PCollection[Outcome]) -> PCollection[Outcome]:
        """Wires."""
        return outcomes | beam.ParDo(ScoreFn(self._config)).with_output_types(Outcome)
