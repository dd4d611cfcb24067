"""Spans of a process: recorded as their contexts say, counted where headers are broken, absent where tracing is off."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipelines.local.ports import free_ports
from schemas import traces
from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.identity import GroupId
from schemas.trace_context import GROUPS_HEADER, HEADER, TraceContext, encode_groups
from schemas.tracing import TracingConfig
from schemas.trajectories import decode, encode
from tests.support.samples import group
from tests.support.spans import read_spans, tracing

GIVEN = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", sampled=True)


def record(*headers, offset=38, timestamp=1_769_860_800_000):
    return SimpleNamespace(
        topic="demo.prompts", partition=0, offset=offset, timestamp=timestamp, headers=list(headers)
    )  # fmt: skip


def ignored(source="demo.prompts"):
    return traces.HEADERS_IGNORED.labels(source)._value.get()


def test_a_span_is_written_as_it_was_told(tmp_path):
    with tracing(tmp_path) as read:
        context = traces.begin("demo/0/38", None, "test")
        other = traces.begin("other", None, "test")
        span = traces.Span(context.child(), "engine", 10.0, 12.5, {"worker": "http://a", "samples": 8}, (other,))
        traces.record(span)
        (found,) = read()
    assert (found.service, found.name, found.trace_id) == ("asyncflow-rollout", "engine", context.trace_id)
    assert (found.span_id, found.parent_id) == (span.context.span_id, context.span_id)
    assert (found.began_ns, found.ended_ns) == (10_000_000_000, 12_500_000_000)
    assert found.attributes == {"asyncflow.worker": "http://a", "asyncflow.samples": 8}
    assert found.links == ((other.trace_id, other.span_id),)
    assert found.fault is None


def test_the_first_span_of_a_trace_has_none_above_it(tmp_path):
    with tracing(tmp_path) as read:
        context = traces.begin("demo/0/38", None, "test")
        traces.record(traces.Span(context, "rollout", 1.0, 2.0))
        (found,) = read()
    assert (found.trace_id, found.span_id, found.parent_id) == (context.trace_id, context.span_id, None)


def fail(context):
    with traces.spanning(context, "engine", worker="http://a") as span:
        span.attributes["samples"] = 3
        raise KeyError("lost")


def test_what_is_raised_is_a_spans_fault_and_goes_on(tmp_path):
    with tracing(tmp_path) as read:
        with pytest.raises(KeyError):
            fail(traces.begin("a", None, "test"))
        (found,) = read()
    assert found.fault == "KeyError('lost')"
    assert found.attributes == {"asyncflow.worker": "http://a", "asyncflow.samples": 3}
    assert found.ended_ns >= found.began_ns


def test_a_trace_that_is_not_sampled_is_passed_on_and_not_written(tmp_path):
    with tracing(tmp_path, ratio=0.0) as read:
        own = traces.begin("demo/0/38", None, "test")
        given = traces.begin("demo/0/39", GIVEN.header(), "test")
        for context in (own, given):
            traces.record(traces.Span(context, "rollout", 1.0, 2.0))
        assert [found.trace_id for found in read()] == [GIVEN.trace_id], "who began a trace decides"
    assert dict(traces.headers_of(own)) == {HEADER: f"00-{own.trace_id}-{own.span_id}-00".encode()}


def test_a_record_goes_on_with_the_trace_that_its_header_names(tmp_path):
    with tracing(tmp_path):
        context = traces.begin_at(record((HEADER, GIVEN.header().encode())))
        assert (context.trace_id, context.parent_id, context.sampled) == (GIVEN.trace_id, GIVEN.span_id, True)
        assert traces.begin_at(record((HEADER, GIVEN.header().encode()))) == context, "read again, it is the same span"
        assert traces.given_in(record((HEADER, GIVEN.header().encode()))) == GIVEN


def test_a_record_without_a_header_begins_a_trace_that_is_found_again(tmp_path):
    with tracing(tmp_path):
        first = traces.begin_at(record())
        assert traces.given_in(record()) is None
    with tracing(tmp_path, process="join-feedback"):
        assert traces.begin_at(record()) == first
        assert traces.begin_at(record(offset=39)).trace_id != first.trace_id
        assert traces.begin_at(record(timestamp=1)).trace_id != first.trace_id, "another run of the same name"


@pytest.mark.parametrize("broken", [b"", b"\xff", b"00-x", GIVEN.header().upper().encode()])
def test_a_broken_header_is_counted_and_the_record_begins_a_trace(tmp_path, broken):
    before = ignored()
    with tracing(tmp_path):
        assert traces.begin_at(record((HEADER, broken))) == traces.begin_at(record())
        assert traces.given_in(record((HEADER, broken))) is None
        assert traces.groups_in(record((GROUPS_HEADER, broken))) == {}
    assert ignored() == before + 3


def test_a_null_header_is_none(tmp_path):
    before = ignored()
    with tracing(tmp_path):
        assert traces.begin_at(record((HEADER, None))) == traces.begin_at(record())
    assert ignored() == before


def test_groups_have_their_spans_and_their_record_is_the_same_without(tmp_path):
    samples = group(0, 38) + group(1, 7)
    contexts = {GroupId(0, 38): GIVEN}
    value, headers = encode(samples, traces=contexts)
    plain_value, plain_headers = encode(samples)
    assert (value, headers) == (plain_value, {**plain_headers, GROUPS_HEADER: encode_groups(contexts)})
    assert [len(each) for each in decode(value, headers)] == [2, 2]
    with tracing(tmp_path):
        assert traces.groups_in(record(*headers.items())) == contexts


def test_where_tracing_is_off_nobody_has_a_context(tmp_path):
    named = record((HEADER, GIVEN.header().encode()), (GROUPS_HEADER, b"broken"))
    before = ignored()
    assert traces.begin("a", GIVEN.header(), "test") is traces.begin_at(named) is traces.given_in(named) is None
    assert traces.groups_in(named) == {}
    assert traces.headers_of(None) == []
    with traces.spanning(traces.below(None), "engine") as span:
        assert span.context is None
    assert ignored() == before


def test_opened_twice_it_is_one_tracer_and_another_process_replaces_it(tmp_path):
    config = TracingConfig(exporter="file", directory=str(tmp_path))
    with tracing(tmp_path) as read:
        traces.record(traces.Span(traces.begin("a", None, "test"), "rollout", 1.0, 2.0))
        first = traces._tracer
        traces.open_tracing(config, "demo", "rollout")
        assert traces._tracer is first
        traces.open_tracing(config, "demo", "gateway")
        assert traces._tracer is not first
        assert [found.name for found in read_spans(tmp_path)] == ["rollout"], "what waited was written"
        traces.record(traces.Span(traces.begin("b", None, "test"), "exchange", 3.0, 4.0))
        assert [found.service for found in read()] == ["asyncflow-rollout", "asyncflow-gateway"]


def test_a_time_that_cannot_be_costs_no_other_span(tmp_path):
    times = {"generate": (-5.0, -4.0), "queue": (1.0, 2.0), "write": (1e12, 1e13)}
    with tracing(tmp_path) as read:
        for name, (began_s, ended_s) in times.items():
            traces.record(traces.Span(traces.begin(name, None, "test"), name, began_s, ended_s))
        assert [(span.name, span.began_ns) for span in read()] == [
            ("generate", 0), ("queue", 10**9), ("write", 2**64 - 1),
        ]  # fmt: skip


def test_a_span_that_cannot_be_recorded_is_counted(tmp_path):
    lost = traces.SPANS_LOST.labels("engine")
    before = lost._value.get()
    with tracing(tmp_path) as read:
        traces.record(traces.Span(traces.begin("a", None, "test"), "engine", float("nan"), 2.0))
        assert read() == []
    assert lost._value.get() == before + 1


def test_a_fault_of_any_length_is_cut():
    assert len(traces.fault_of(ValueError("x" * 10_000))) == 300


def test_a_file_that_cannot_be_written_to_is_said_in_words(tmp_path):
    (tmp_path / f"rollout-{socket.gethostname()}-{os.getpid()}.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"tracing\.directory = .*: .*give another"), tracing(tmp_path):
        pass


def test_a_line_that_a_killed_process_left_half_written_spoils_no_other(tmp_path):
    file = tmp_path / f"rollout-{socket.gethostname()}-{os.getpid()}.jsonl"
    file.write_bytes(b'{"resourceSp')
    with tracing(tmp_path):
        traces.record(traces.Span(traces.begin("a", None, "test"), "queue", 1.0, 2.0))
    half, whole = file.read_bytes().splitlines()
    assert half == b'{"resourceSp'
    assert json.loads(whole)["resourceSpans"]


_FULL = """
import pathlib, resource, sys
from schemas import traces
from schemas.tracing import TracingConfig
directory = pathlib.Path(sys.argv[1])
traces.open_tracing(TracingConfig(exporter="file", directory=str(directory)), "demo", "rollout")
def record(name):
    traces.record(traces.Span(traces.begin(name, None, "test"), name, 1.0, 2.0))
    traces._tracer._provider.force_flush()
record("queue")
(file,) = directory.iterdir()
for more in (10, 20):
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + more, resource.RLIM_INFINITY))
    record("generate")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
record("score")
traces.close_tracing()
"""


def test_a_line_that_a_disk_had_no_room_for_is_told_once_and_spoils_no_other(tmp_path):
    done = subprocess.run([sys.executable, "-c", _FULL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("spans_not_written") == 1
    assert [span.name for span in read_spans(tmp_path)] == ["queue", "score"]


def test_a_directory_that_cannot_be_made_is_said_in_words(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"tracing\.directory = .*/file/traces.*: .*give another"),
        tracing(tmp_path / "file" / "traces"),
    ):
        pass


def test_without_the_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    for name in ("schemas.tracers", "schemas.span_files"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"tracing\.exporter = .file. needs OpenTelemetry.*asyncflow-rl\[tracing\]"):
        traces.open_tracing(RunConfig().tracing.model_copy(update={"exporter": "file"}), "demo", "learn")


class Collector(BaseHTTPRequestHandler):
    """Takes spans by OTLP over HTTP."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        request = ExportTraceServiceRequest.FromString(body)
        spans = [span for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]
        self.server.taken += [(self.path, span.name, span.trace_id.hex()) for span in spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.taken = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_collector_gets_the_spans(tmp_path, collector):
    with tracing(tmp_path, exporter="otlp", endpoint=f"http://127.0.0.1:{collector.server_port}/v1/traces"):
        context = traces.begin("demo/0/38", None, "test")
        traces.record(traces.Span(context, "rollout", 1.0, 2.0))
    assert collector.taken == [("/v1/traces", "rollout", context.trace_id)]


def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path):
    (port,) = free_ports(1)
    with tracing(tmp_path, exporter="otlp", endpoint=f"http://127.0.0.1:{port}/v1/traces"):
        traces.record(traces.Span(traces.begin("demo/0/38", None, "test"), "rollout", 1.0, 2.0))


@pytest.mark.timed
def test_a_collector_that_is_silent_holds_up_no_end_for_long(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        with tracing(tmp_path, exporter="otlp", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"):
            for number in range(4 * 512):
                traces.record(traces.Span(traces.begin(str(number), None, "test"), "queue", 1.0, 2.0))
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 12


def test_every_form_has_a_meaning():
    kinds = {"INTERNAL", "CLIENT", "SERVER", "CONSUMER"}
    for name, form in traces.SPANS.items():
        assert name.islower()
        assert form.kind in kinds
        assert form.meaning.endswith(".")


_OFF = """
import sys
from schemas import traces
from schemas.config import RunConfig
import pipelines.gateway.serve, pipelines.join_feedback, pipelines.rollout, trainers.learn
import transforms.generation.worker.server
traces.open_tracing(RunConfig().tracing, "demo", "rollout")
assert traces.begin("a", None, "b") is None
traces.close_tracing()
print(*(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def test_where_tracing_is_off_no_process_imports_opentelemetry():
    done = subprocess.run([sys.executable, "-c", _OFF], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
