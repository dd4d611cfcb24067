"""How pipelines are run on Beam: handed over, watched, and the figures of the process that submits them."""

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import apache_beam as beam
import structlog
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from pipelines.submission import flink_job
from pipelines.submission.submission import PipelineName, Submission, read
from schemas.config import RunConfig
from schemas.errors import ConfigError

_LOG = structlog.get_logger(__name__)
_ENDED: Final = (
    PipelineState.DONE, PipelineState.FAILED, PipelineState.CANCELLED, PipelineState.DRAINED, PipelineState.UPDATED,
)  # fmt: skip
_LOOK_S: Final = 0.2
_LOOK_FAR_S: Final = 5.0
"""Dataflow counts how often it is asked, and Flink is asked over the network."""
_UNSEEN_S: Final = 60.0
"""For how long Flink may not answer: its job manager is started again."""


def submission_of(pipeline: PipelineName, config: RunConfig, beam_args: Sequence[str]) -> Submission:
    """What is to be handed to a runner, checked.

    Args:
        pipeline: its verb.
        config: of the run.
        beam_args: any of Beam's options, such as ``--runner=FlinkRunner``; Prism if none is named.

    Raises:
        ConfigError: it would not work there.
    """
    from pipelines.submission.checks import require  # it builds the pipelines, whose modules import this one

    submission = read(pipeline, config, beam_args)
    require(submission, config)
    return submission


def beam_options(submission: Submission) -> PipelineOptions:
    """Beam's own form of them: always streaming, and never with the main module of this program.

    Raises:
        UserError: Prism is not here, and can be neither downloaded nor built.
    """
    return PipelineOptions(submission.flags(), streaming=True, save_main_session=False)


def empty_pipeline(submission: Submission) -> beam.Pipeline:
    """A pipeline for that runner, without steps.

    Raises:
        ConfigError: Beam refuses an option.
        UserError: as :func:`beam_options`.
    """
    try:
        return beam.Pipeline(options=beam_options(submission))
    except ValueError as error:
        raise ConfigError(f"Beam refuses its options: {' '.join(str(error).split())}") from error


def watch(result: Any, stop: threading.Event, submission: Submission) -> str:
    """Waits until a pipeline ends, or until it is to end, and then cancels it. A template is done when it is written.

    Args:
        result: of ``Pipeline.run``.
        stop: set to end it.
        submission: what runs.

    Returns:
        The state in which it ended by itself, or ``CANCELLED`` once it was told to.

    Raises:
        Exception: what the runner says of its fault.
    """
    if submission.writes_template:
        return str(PipelineState.DONE)
    job = flink_job.job_of(result)
    state_of = _Looks(result, _UNSEEN_S if job else 0.0)
    while not stop.wait(_LOOK_FAR_S if job or submission.runner == "dataflow" else _LOOK_S):
        if state_of() in _ENDED:
            return str(result.wait_until_finish())  # raises what went wrong
    if job:
        flink_job.cancel(job)
    else:
        result.cancel()
    return str(PipelineState.CANCELLED)


class _Looks:
    """Looks at a pipeline's state, of which some may fail, as long as they do not do so for too long."""

    def __init__(self, result: Any, unseen_s: float) -> None:
        self._result, self._unseen_s, self._seen_s = result, unseen_s, time.monotonic()

    def __call__(self) -> str | None:
        """The state; None if this look failed."""
        try:
            state = str(self._result.state)
        except Exception as error:
            if time.monotonic() - self._seen_s >= self._unseen_s:
                raise
            _LOG.warning("runner_not_seen", error=repr(error)[:500])
            return None
        self._seen_s = time.monotonic()
        return state
