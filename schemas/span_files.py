"""Spans as files that need no collector: OTLP's JSON, one request a line.

    spans ──► OpenTelemetry's encoder ──► protobuf's JSON ──► ids as OTLP wants them ──► a line of
    DIRECTORY/PROCESS-HOST-PID.jsonl

The form is that of OpenTelemetry's file exporter, which a collector reads with its receiver ``otlpjsonfile``; so a
trace that was kept as a file can be shown by Jaeger or Tempo later. This module imports OpenTelemetry: see
:mod:`schemas.tracers`.
"""

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from schemas.errors import ConfigError

_LOG = structlog.get_logger(__name__)
_IDS: Final = ("traceId", "spanId", "parentSpanId")
"""OTLP writes these in hexadecimal digits, unlike protobuf's JSON."""


class FileExporter(SpanExporter):
    """Appends spans to a file of this process.

    Args:
        directory: made if it is missing.
        process: name of the file, together with the machine's and the process's number: containers share numbers.

    Raises:
        ConfigError: the directory or the file cannot be made, or not be written to.
    """

    def __init__(self, directory: Path, process: str) -> None:
        self._path = directory / f"{process}-{socket.gethostname()}-{os.getpid()}.jsonl"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise ConfigError(f"tracing.directory = {str(directory)!r}: {error.strerror}; give another one") from error
        self._lock = threading.Lock()
        self._told = False

    def _begin(self) -> None:
        """A container that was killed while it wrote, and is there again with the same numbers, begins a line."""
        with self._path.open("a+b") as file:
            if file.tell() == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes one line; a disk that is full costs these spans and nothing else."""
        line = json.dumps(to_json(spans), ensure_ascii=False, separators=(",", ":")) + "\n"
        with self._lock:
            try:
                self._append(line.encode())
            except OSError as error:
                self._tell(error)
                return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _append(self, line: bytes) -> None:
        """Writes all of it or nothing: the next line would go on with a part."""
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab") as file:
                file.write(line)
        except OSError:
            os.truncate(self._path, size)
            raise

    def _tell(self, error: OSError) -> None:
        if not self._told:
            _LOG.warning("spans_not_written", file=str(self._path), error=repr(error))
        self._told = True


def to_json(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """OTLP's JSON of a request."""
    request: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for span in _spans_of(request):
        for part in (span, *span.get("links", ())):
            part.update({name: base64.b64decode(part[name]).hex() for name in _IDS if name in part})
    return request


def _spans_of(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]
