"""Where spans go: the section ``tracing`` of the configuration."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.sections import Section

Exporter = Literal["none", "file", "otlp"]


class TracingConfig(Section):
    """Traces of samples across processes, for OpenTelemetry."""

    exporter: Exporter = "none"
    """``none`` records nothing and writes no headers; ``file`` writes OTLP's JSON, one request a line, below
    ``directory``; ``otlp`` sends to a collector, Jaeger or Tempo by OTLP over HTTP."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces that begin here which is recorded. A trace that somebody else began is recorded if its
    ``traceparent`` says so."""
    directory: str = "traces"
    """With ``file``: where each process writes a file of its own."""
    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$", max_length=300)] = "http://127.0.0.1:4318/v1/traces"
    """With ``otlp``: where requests are sent. Keys are not written here: OpenTelemetry takes them from the variable
    ``OTEL_EXPORTER_OTLP_HEADERS``."""
