"""OpenTelemetry's tracer, with ids that are given instead of drawn.

    Span ──► Tracer ──► batches, in a thread of OpenTelemetry's ──► a file of OTLP's JSON, or a collector

This module imports OpenTelemetry: :mod:`schemas.traces` imports it where tracing is switched on.
"""

import atexit
import threading
from pathlib import Path
from typing import Any, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from schemas.span_files import FileExporter
from schemas.trace_context import TraceContext
from schemas.traces import SPANS, Span
from schemas.tracing import TracingConfig

_LOG = structlog.get_logger(__name__)
_SEND_EVERY_MS: Final = 1000
_MOST_WAITING: Final = 1 << 14
"""Spans that wait to be sent; the oldest make way for further ones, and OpenTelemetry says so."""
_MOST_LINKS: Final = 1 << 12
"""A step has one for each of its groups; OpenTelemetry keeps 128 unless it is told otherwise."""
_COLLECTOR_TIMEOUT_S: Final = 5.0
_CLOSING_MS: Final = 3000
"""How long the end of a process waits for what is still to be sent; a gateway has 10 s for its whole end."""
_NS: Final = 10**9
_LAST_NS: Final = (1 << 64) - 1


class Tracer:
    """Records the spans of a process.

    Args:
        config: that switches it on.
        run: name of the run.
        process: whose spans they are.
        key: by which it is told from another one.

    Raises:
        ConfigError: the directory of files cannot be made.
    """

    def __init__(self, config: TracingConfig, run: str, process: str, key: tuple[Any, ...]) -> None:
        self.key, self.ratio = key, config.ratio
        self._ids = _GivenIds()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # contexts say which spans are recorded, and others do not come here
            resource=Resource.create({"service.name": f"asyncflow-{process}", "asyncflow.run": run}),
            id_generator=self._ids,
            span_limits=SpanLimits(max_links=_MOST_LINKS),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            _Batches(_exporter_of(config, process), max_queue_size=_MOST_WAITING, schedule_delay_millis=_SEND_EVERY_MS)
        )
        self._tracer = self._provider.get_tracer("asyncflow")
        atexit.register(self.close)
        _LOG.info("tracing", exporter=config.exporter, ratio=config.ratio)

    def record(self, span: Span, context: TraceContext) -> None:
        """Has a span sent, later."""
        form = SPANS[span.name]
        self._ids.give(context)
        told = self._tracer.start_span(
            span.name,
            _below(context),
            SpanKind[form.kind],
            {f"asyncflow.{name}": value for name, value in span.attributes.items() if value is not None},
            [Link(_span_context(link)) for link in span.links],
            start_time=_ns(span.began_s),
        )
        if span.fault is not None:
            told.set_status(Status(StatusCode.ERROR, span.fault))
        told.end(_ns(max(span.began_s, span.ended_s)))

    def close(self) -> None:
        """Sends what waits, within some seconds; what a collector does not take by then is lost."""
        atexit.unregister(self.close)
        self._provider.shutdown()


class _Batches(BatchSpanProcessor):
    """OpenTelemetry's, but for how long it waits at the end: 30 s there, and nothing that sets it."""

    def shutdown(self) -> None:
        """What is on its way then has a daemon's thread, which holds up no process."""
        self._batch_processor.shutdown(timeout_millis=_CLOSING_MS)


class _GivenIds(IdGenerator):
    """Those of the context that its thread has given last."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def give(self, context: TraceContext) -> None:
        """The next span of this thread is that of a context."""
        self._of_thread.context = context

    def generate_span_id(self) -> int:
        """As OpenTelemetry asks for it."""
        return int(self._of_thread.context.span_id, 16)

    def generate_trace_id(self) -> int:
        """As OpenTelemetry asks for it; only of a span with none above it."""
        return int(self._of_thread.context.trace_id, 16)


def _ns(since_1970_s: float) -> int:
    """Nanoseconds as OTLP can hold them: one time that it cannot would cost all spans that are sent with it."""
    return min(max(0, int(since_1970_s * _NS)), _LAST_NS)


def _below(context: TraceContext) -> Context:
    """OpenTelemetry's context of a span's parent."""
    if context.parent_id is None:
        return Context()
    parent = context._replace(span_id=context.parent_id)
    return set_span_in_context(NonRecordingSpan(_span_context(parent)), Context())


def _span_context(context: TraceContext) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


def _exporter_of(config: TracingConfig, process: str) -> SpanExporter:
    if config.exporter == "otlp":
        return OTLPSpanExporter(config.endpoint, timeout=_COLLECTOR_TIMEOUT_S)
    return FileExporter(Path(config.directory), process)
