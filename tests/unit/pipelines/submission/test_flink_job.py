"""A job that went to Flink as a jar is ended as Flink's REST API has it, by a server that answers so."""

import json
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.flink_uber_jar_job_server import FlinkBeamJob, FlinkUberJarJobServer
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.runner import PipelineState

from pipelines import beam
from pipelines.beam import watch
from pipelines.submission import flink_job
from pipelines.submission.submission import read
from schemas.config import RunConfig

JOB = "5f1b2c"


class Flink(ThreadingHTTPServer):
    """Flink's REST API, of one job."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.state, self.to_fail, self.obeys, self.looks_before_end, self.asked = "RUNNING", 0, True, 0, []

    def answer(self, method, path):
        """Status and what is told."""
        self.asked.append((method, path))
        if self.to_fail:
            self.to_fail -= 1
            return 503, {"errors": ["Service temporarily unavailable"]}
        if (method, path) == ("PATCH", f"/v1/jobs/{JOB}?mode=cancel"):
            if self.obeys and self.state == "RUNNING":
                self.state = "CANCELLING"
            return 202, {}
        if (method, path) == ("GET", f"/v1/jobs/{JOB}"):
            return 200, {"state": self._state()}
        if (method, path) == ("GET", f"/v1/jobs/{JOB}/execution-result"):
            return 200, {"status": {"id": "COMPLETED" if self.state == "FINISHED" else "IN_PROGRESS"}}
        return 404, {"errors": ["Not found"]}

    def _state(self):
        if self.state == "CANCELLING":
            self.looks_before_end -= 1
            self.state = "CANCELED" if self.looks_before_end < 0 else self.state
        return self.state


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, told = self.server.answer(self.command, self.path)
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PATCH = do_GET  # noqa: N815 - the name that the server calls

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def _often(monkeypatch, tmp_path):
    monkeypatch.setattr(flink_job, "_LOOK_S", 0.01)
    monkeypatch.setattr(beam, "_LOOK_FAR_S", 0.01)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where Beam leaves jars


@pytest.fixture
def flink():
    with Flink() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def result(flink):
    """As Beam has it of a job that it has submitted."""
    options = PipelineOptions()
    service = FlinkUberJarJobServer(flink.url, options)
    job = service._jobs["job-1"] = FlinkBeamJob(flink.url, None, "job-1", "job", None, options)
    job._flink_job_id = JOB
    return PipelineResult(service, "job-1", iter(()), iter(()))


def told_to_end(result):
    stop = threading.Event()
    stop.set()
    return watch(result, stop, read("rollout", RunConfig(), ["--runner=FlinkRunner", "--flink_submit_uber_jar"]))


def test_it_is_cancelled_in_flink_and_awaited(flink, result):
    flink.looks_before_end = 3
    assert told_to_end(result) == PipelineState.CANCELLED
    assert flink.state == "CANCELED"


def test_a_flink_that_does_not_answer_for_a_moment_is_asked_again(flink, result):
    flink.to_fail = 2
    assert told_to_end(result) == PipelineState.CANCELLED
    assert flink.state == "CANCELED"


def test_a_job_that_has_ended_is_let_be(flink, result):
    flink.state = "FINISHED"
    assert told_to_end(result) == PipelineState.CANCELLED
    assert {method for method, _ in flink.asked} == {"GET"}


def test_a_job_that_does_not_end_is_told_with_what_to_do(flink, result):
    flink.obeys = False
    by_hand = re.escape(f"curl -X PATCH '{flink.url}/v1/jobs/{JOB}?mode=cancel'")
    with pytest.raises(RuntimeError, match=by_hand):
        flink_job.cancel(flink_job.job_of(result), limit_s=0.1)


def test_looks_that_fail_are_borne_for_a_while(flink, result, monkeypatch):
    flink.to_fail = 3
    looks = beam._Looks(result, unseen_s=600)
    assert [looks() for _ in range(4)] == [None, None, None, PipelineState.RUNNING]
    flink.to_fail = 1
    with pytest.raises(RuntimeError, match="status 503"):
        beam._Looks(result, unseen_s=0)()


def test_other_pipelines_have_no_such_job():
    assert flink_job.job_of(object()) is None
