"""The rollout pipeline: prompts become scored groups, exactly once.

    prompts ──► Generate ──► Score ──► Assemble ──► Write ──► trajectories, pending, dead-letters
                   ▲                                            (and the prompts' offsets)
    admission ─────┤
    vLLM workers ──┘

All of it is one fused stage: the pool that Generate reads from is the one that Write commits through.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import apache_beam as beam
import psutil
import structlog
from apache_beam.runners.runner import PipelineState

from pipelines.beam import empty_pipeline, submission_of, watch
from pipelines.local.state_sampler import sample_often
from pipelines.local.topics import create_topics
from pipelines.submission.submission import Submission
from schemas import traces
from schemas.config import RunConfig
from schemas.endpoint import serve_metrics
from transforms.assemble import Assemble
from transforms.environments import registry as environments
from transforms.generation.generate import Generate
from transforms.generation.pool import all_pools, drain_all, first_error, stop_all
from transforms.generation.tokenizer import Tokenizer
from transforms.kafka import Write
from transforms.rewards import registry
from transforms.rewards.asking import Asking
from transforms.rewards.sandbox import launch
from transforms.score import Score

_LOG = structlog.get_logger(__name__)
_FAILED: Final = 1
_LOOK_S: Final = 0.1
_WELL: Final = (PipelineState.DONE, PipelineState.DRAINED)


def build(pipeline: beam.Pipeline, config: RunConfig) -> None:
    """Puts the rollout pipeline together."""
    _ = (
        pipeline
        | "Generate" >> Generate(config)
        | "Score" >> Score(config)
        | "Assemble" >> Assemble(config)
        | "Write" >> Write(config)
    )


def run(config: RunConfig, beam_args: Sequence[str] = ()) -> int:
    """Runs until it is told to end: SIGTERM or SIGINT finishes what is in flight, a second one does not wait.

    Where workers are not in this process, neither is what is in flight: then the first one cancels the pipeline, and
    the next start has answered again what was not committed.

    Args:
        config: of the run.
        beam_args: any of Beam's options, such as ``--runner=FlinkRunner``.

    Returns:
        0 if it was drained or told to end, 1 if it failed.

    Raises:
        UserError: the model, a reward module, Kafka, its topics, a port or Beam's options are not as they have to be.
    """
    submission = submission_of("rollout", config, beam_args)
    check(config)
    pipeline = empty_pipeline(submission)
    stop = threading.Event()
    _end_on_signals(_handler(submission, stop))
    if submission.works_here:
        serve_metrics("rollout", config.rollout.metrics_host, config.rollout.metrics_port)
        sample_often()
    build(pipeline, config)
    try:
        state = _run_until_end(pipeline, stop, submission)
    except Exception as error:  # noqa: BLE001 - a runner's errors have no common class
        _LOG.error("rollout_failed", error=repr(first_error(all_pools()) or error)[:2000])
        return _FAILED
    finally:
        stop_all()
        traces.close_tracing()
    _LOG.info("rollout_ended", state=state)
    return 0 if stop.is_set() or state in _WELL else _FAILED


def _run_until_end(pipeline: beam.Pipeline, stop: threading.Event, submission: Submission) -> str:
    """Returns the state in which it ended; raises what the runner says of its fault, or the fault of a pool."""
    result = pipeline.run()
    state = str(result.wait_until_finish() if _ends_alone(submission) else watch(result, stop, submission))
    if error := first_error(all_pools()):  # of which a runner that is told to cancel says nothing
        raise error
    return state


def check(config: RunConfig) -> None:
    """Finds what would not work before anything starts.

    Raises:
        UserError: in words.
    """
    traces.open_tracing(config.tracing, config.name, "rollout")
    registry.load(config.rewards.modules)
    if config.rewards.sandbox == "required":
        launch.check("required")
    environments.load(config.rollout.environments)
    Tokenizer.load(config.model.path)
    config.worker.key()
    Asking(config.rewards)  # whose services find their keys, or say which is missing
    create_topics(config)


def _end_on_signals(end: Callable[[int, Any], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _ends_alone(submission: Submission) -> bool:
    """Whether a pipeline ends once it is drained: Flink keeps one whose sources have ended."""
    return submission.works_here and submission.runner != "flink"


def _handler(submission: Submission, stop: threading.Event) -> Callable[[int, Any], None]:
    """What the first signal does."""
    if _ends_alone(submission):
        return _drain
    return _drain_then(stop) if submission.works_here else _setting(stop)


def _setting(stop: threading.Event) -> Callable[[int, Any], None]:
    def end(number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
        _end_on_signals(partial(_end_at_once, "ended without waiting for the runner, where the pipeline may go on"))
        stop.set()

    return end


def _drain_then(stop: threading.Event) -> Callable[[int, Any], None]:
    def end(number: int, frame: Any) -> None:
        _drain(number, frame)
        threading.Thread(target=_set_when_drained, args=(stop,), name="drained", daemon=True).start()

    return end


def _set_when_drained(stop: threading.Event) -> None:
    while not all(pool.is_drained() or pool.error for pool in all_pools()):
        time.sleep(_LOOK_S)
    stop.set()


def _drain(number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
    left = "ended without waiting for what was in flight; the next start answers it"
    _end_on_signals(partial(_end_at_once, left))
    drain_all()


def _end_at_once(left: str, number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
    sys.stderr.write(f"{left}\n")
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)
