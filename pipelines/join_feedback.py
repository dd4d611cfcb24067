"""The feedback pipeline: what people and programs say of answers becomes rewards, exactly once.

pending ──┐
├──► JoinFeedback (keyed by group: state and timers) ──► Commit ──► trajectories, outcomes, dead-letters
feedback ─┘                                                                  (and the offsets of both)
"""

import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import apache_beam as beam
import structlog
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.runners.runner import PipelineState

from pipelines.beam import beam_options, serve_metrics
from pipelines.local.state_sampler import sample_often
from pipelines.local.topics import create_topics
from schemas import traces
from schemas.config import RunConfig
from schemas.receipts import Receipts
from transforms.feedback import book, feed
from transforms.generation.tokenizer import Tokenizer
from transforms.join_feedback import Commit, JoinFeedback

_LOG = structlog.get_logger(__name__)
_FAILED: Final = 1
_UNDIVIDED: Final = "prism_disable_sdf_split"
"""Prism 2.77 divides a bundle that is slow, and then forgets which of the keys that it moves are worked on still: two
bundles of one key at a time, of which the later one overwrites the state of the other."""
_LOOK_S: Final = 0.2
_ENDED: Final = (PipelineState.DONE, PipelineState.FAILED, PipelineState.CANCELLED)


def build(pipeline: beam.Pipeline, config: RunConfig) -> None:
    """Puts the feedback pipeline together."""
    _ = pipeline | "Join" >> JoinFeedback(config) | "Commit" >> Commit(config)


def run(config: RunConfig, beam_args: Sequence[str] = ()) -> int:
    """Runs until it is told to end (SIGTERM or SIGINT): at once, since all it knows is in the topics.

    Args:
        config: of the run.
        beam_args: any of Beam's options, such as ``--runner=FlinkRunner``.

    Returns:
        0 if it was told to end, 1 if it failed.

    Raises:
        UserError: the model, the key of receipts, Kafka, its topics or a port is not as it has to be.
    """
    check(config)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    options = beam_options(beam_args)
    options.view_as(DebugOptions).add_experiment(_UNDIVIDED)
    serve_metrics("feedback", config.feedback.metrics_host, config.feedback.metrics_port)
    sample_often()
    pipeline = beam.Pipeline(options=options)
    build(pipeline, config)
    try:
        return _watch(pipeline.run(), stop)
    except Exception as error:  # noqa: BLE001 - a runner's errors have no common class
        _LOG.error("join_failed", error=repr(error)[:2000])
        return _FAILED
    finally:
        feed.close_all()
        book.close_all()
        traces.close_tracing()


def _watch(result: Any, stop: threading.Event) -> int:
    while not stop.is_set():
        if result.state in _ENDED:
            result.wait_until_finish()  # raises what went wrong
            return _FAILED
        time.sleep(_LOOK_S)
    result.cancel()
    _LOG.info("join_ended")
    return 0


def check(config: RunConfig) -> None:
    """Finds what would not work before anything starts.

    Raises:
        UserError: in words.
    """
    traces.open_tracing(config.tracing, config.name, "join-feedback")
    Tokenizer.load(config.model.path)
    if config.feedback.key_file:
        Receipts.load(config.feedback.key_file)
    create_topics(config)
