"""Spans that processes wrote to files, as a test looks at them."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

from schemas import traces
from schemas.tracing import TracingConfig


@dataclass(frozen=True)
class Read:
    """One span of a file."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    began_ns: int
    ended_ns: int
    attributes: dict
    links: tuple
    """Ids of trace and span."""
    fault: str | None


def read_spans(directory):
    """All spans below a directory, by their beginnings."""
    found = []
    for file in sorted(directory.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            for of in json.loads(line)["resourceSpans"]:
                service = _plain(of["resource"]["attributes"])["service.name"]
                found += [_read(service, span) for scope in of["scopeSpans"] for span in scope["spans"]]
    return sorted(found, key=lambda span: span.began_ns)


def _read(service, span):
    return Read(
        service,
        span["name"],
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId"),
        int(span.get("startTimeUnixNano", 0)),
        int(span.get("endTimeUnixNano", 0)),
        _plain(span.get("attributes", ())),
        tuple((link["traceId"], link["spanId"]) for link in span.get("links", ())),
        span["status"].get("message"),
    )


def _plain(attributes):
    kinds = {"stringValue": str, "intValue": int, "doubleValue": float, "boolValue": bool}
    return {
        each["key"]: kinds[kind](value) for each in attributes for kind, value in each["value"].items()
    }  # fmt: skip


@contextmanager
def tracing(directory, process="rollout", **changes):
    """This process records spans below a directory; yields what reads them once they are written."""
    given = {"exporter": "file", "directory": str(directory), **changes}
    traces.open_tracing(TracingConfig(**given), "demo", process)

    def read():
        traces.close_tracing()
        return read_spans(directory)

    try:
        yield read
    finally:
        traces.close_tracing()
