"""The feedback pipeline: what people and programs say of answers becomes rewards, exactly once.

pending ──┐
├──► JoinFeedback (keyed by group: state and timers) ──► Commit ──► trajectories, outcomes, dead-letters
feedback ─┘                                                                  (and the offsets of both)
"""

import signal
import threading
from collections.abc import Sequence
from typing import Final

import apache_beam as beam
import structlog
from apache_beam.runners.runner import PipelineState

from pipelines.beam import empty_pipeline, submission_of, watch
from pipelines.local.state_sampler import sample_often
from pipelines.local.topics import create_topics
from schemas import traces
from schemas.config import RunConfig
from schemas.endpoint import serve_metrics
from schemas.receipts import Receipts
from transforms.feedback import book, feed
from transforms.generation.tokenizer import Tokenizer
from transforms.join_feedback import Commit, JoinFeedback

_LOG = structlog.get_logger(__name__)
_FAILED: Final = 1


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
        UserError: the model, the key of receipts, Kafka, its topics, a port or Beam's options are not as they have to
            be.
    """
    submission = submission_of("join-feedback", config, beam_args)
    check(config)
    pipeline = empty_pipeline(submission)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if submission.works_here:
        serve_metrics("feedback", config.feedback.metrics_host, config.feedback.metrics_port)
        sample_often()
    build(pipeline, config)
    try:
        state = watch(pipeline.run(), stop, submission)
    except Exception as error:  # noqa: BLE001 - a runner's errors have no common class
        _LOG.error("join_failed", error=repr(error)[:2000])
        return _FAILED
    finally:
        feed.close_all()
        book.close_all()
        traces.close_tracing()
    _LOG.info("join_ended", state=state)
    return 0 if stop.is_set() or (submission.only_writes and state == PipelineState.DONE) else _FAILED


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
