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
from collections.abc import Sequence
from typing import Any, Final

import apache_beam as beam
import psutil
import structlog
from apache_beam.runners.runner import PipelineState

from pipelines.beam import beam_options, serve_metrics
from pipelines.local.state_sampler import sample_often
from pipelines.local.topics import create_topics
from schemas import traces
from schemas.config import RunConfig
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

    Args:
        config: of the run.
        beam_args: any of Beam's options, such as ``--runner=FlinkRunner``.

    Returns:
        0 if it was drained, 1 if it failed.

    Raises:
        UserError: the model, a reward module, Kafka, its topics or a port is not as it has to be.
    """
    check(config)
    options = beam_options(beam_args)
    _end_on_signals()
    serve_metrics("rollout", config.rollout.metrics_host, config.rollout.metrics_port)
    sample_often()
    pipeline = beam.Pipeline(options=options)
    build(pipeline, config)
    try:
        state = pipeline.run().wait_until_finish()
    except Exception as error:  # noqa: BLE001 - a runner's errors have no common class
        _LOG.error("rollout_failed", error=repr(first_error(all_pools()) or error)[:2000])
        return _FAILED
    finally:
        stop_all()
        traces.close_tracing()
    _LOG.info("rollout_ended", state=state)
    return 0 if state == PipelineState.DONE else _FAILED


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


def _end_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _drain)


def _drain(number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, _end_at_once)
    drain_all()


def _end_at_once(number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
    sys.stderr.write("ended without waiting for what was in flight; the next start answers it\n")
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)
