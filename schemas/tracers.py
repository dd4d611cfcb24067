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
"""Spans that wait to be sent; further ones are dropped, and OpenTelemetry says so."""
_MOST_LINKS: Final = 1 << 12
"""A step has one for each of its groups; OpenTelemetry keeps 128 unless it is told otherwise."""
_COLLECTOR_TIMEOUT_S: Final = 5.0
_NS: Final = 10**9


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
            BatchSpanProcessor(
                _exporter_of(config, process), max_queue_size=_MOST_WAITING, schedule_delay_millis=_SEND_EVERY_MS
            )
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
            start_time=int(span.began_s * _NS),
        )
        if span.fault is not None:
            told.set_status(Status(StatusCode.ERROR, span.fault))
        told.end(int(max(span.began_s, span.ended_s) * _NS))

    def close(self) -> None:
        """Sends what waits."""
        atexit.unregister(self.close)
        self._provider.shutdown()


class _GivenIds(IdGenerator):
    """Those of the context that its thread has given last."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def give(self, context: TraceContext) -> None:
        self._of_thread.context = context

    def generate_span_id(self) -> int:
        return int(self._of_thread.context.span_id, 16)

    def generate_trace_id(self) -> int:
        return int(self._of_thread.context.trace_id, 16)


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
