"""Watching a pipeline that runs elsewhere."""

import threading

import pytest
from apache_beam.runners.runner import PipelineState

from pipelines import rollout
from pipelines.beam import watch
from pipelines.submission.submission import read
from schemas.config import RunConfig


class Result:
    """As runners give it: in the states that were foreseen, the last one for ever."""

    def __init__(self, *states, error=None):
        self._states, self._error, self.cancelled = list(states), error, False

    @property
    def state(self):
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    def wait_until_finish(self):
        if self._error:
            raise self._error
        return self.state

    def cancel(self):
        self.cancelled = True


def submission(*arguments):
    return read("rollout", RunConfig(), arguments)


def test_it_waits_for_the_end():
    result = Result(PipelineState.RUNNING, PipelineState.RUNNING, PipelineState.DRAINED)
    assert watch(result, threading.Event(), submission()) == PipelineState.DRAINED
    assert not result.cancelled


def test_a_fault_is_raised():
    with pytest.raises(RuntimeError, match="of the runner"):
        watch(Result(PipelineState.FAILED, error=RuntimeError("of the runner")), threading.Event(), submission())


def test_it_cancels_when_it_is_told_to_end():
    result, stop = Result(PipelineState.RUNNING), threading.Event()
    stop.set()
    assert watch(result, stop, submission()) == PipelineState.CANCELLED
    assert result.cancelled


def test_a_template_is_done_when_it_is_written():
    arguments = ("--runner=DataflowRunner", "--template_location=gs://some-bucket/template")
    assert watch(Result("UNKNOWN"), threading.Event(), submission(*arguments)) == PipelineState.DONE


def test_flink_is_told_to_end_once_every_pool_is_drained(monkeypatch):
    class Draining:
        error = None

        def __init__(self, looks):
            self._looks = looks

        def is_drained(self):
            self._looks -= 1
            return self._looks < 0

    broken = Draining(1000)
    broken.error = RuntimeError("fenced")
    pools = [Draining(0), Draining(2), broken]
    monkeypatch.setattr(rollout, "all_pools", lambda: pools)
    stop = threading.Event()
    rollout._set_when_drained(stop)
    assert stop.is_set()


def test_a_pool_that_failed_while_it_was_drained_is_a_fault(monkeypatch):
    class Pool:
        error = RuntimeError("fenced")

    class Pipeline:
        def run(self):
            return Result(PipelineState.RUNNING)

    stop = threading.Event()
    stop.set()
    assert rollout._run_until_end(Pipeline(), stop, submission("--runner=FlinkRunner")) == PipelineState.CANCELLED
    monkeypatch.setattr(rollout, "all_pools", lambda: [Pool()])
    with pytest.raises(RuntimeError, match="fenced"):
        rollout._run_until_end(Pipeline(), stop, submission("--runner=FlinkRunner"))
