"""Spans of this process: what there are, and how they are recorded and sent.

    open_tracing ──► Tracer (schemas/tracers.py) ◄── record, spanning ◄── whoever has a TraceContext

A span is recorded when it has ended, with its times and with the ids that its context says: most of them begin in one
thread and end in another, or in a record that another process wrote. A process has one tracer. Where tracing is off
there is none, nobody has a context, and OpenTelemetry is never imported.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import structlog
from prometheus_client import Counter

from schemas.errors import ConfigError
from schemas.identity import GroupId
from schemas.trace_context import GROUPS_HEADER, HEADER, TraceContext, decode_groups
from schemas.tracing import TracingConfig

if TYPE_CHECKING:
    from schemas.tracers import Tracer

_T = TypeVar("_T")
_FAULT_CHARACTERS: Final = 300
_LOG = structlog.get_logger(__name__)

HEADERS_IGNORED: Final = Counter(
    "asyncflow_trace_headers_ignored_total", "Trace headers that have no form of W3C's, by where they came.", ["source"]
)

SPANS_LOST: Final = Counter("asyncflow_trace_spans_lost_total", "Spans that could not be recorded, by name.", ["span"])

Process = Literal["rollout", "join-feedback", "gateway", "learn", "worker"]
Kind = Literal["INTERNAL", "CLIENT", "SERVER", "CONSUMER"]


class SpanForm(NamedTuple):
    """What there is to know of the spans of one name."""

    process: str
    """Whose they are; several, separated by commas."""
    kind: Kind
    """OpenTelemetry's."""
    meaning: str
    attributes: tuple[str, ...] = ()
    """Each named ``asyncflow.`` and this; a span may lack some."""


SPANS: Final[Mapping[str, SpanForm]] = {
    "rollout": SpanForm(
        "rollout",
        "CONSUMER",
        "A prompt, from its writing until its group is committed. All later spans of the group are below it.",
        ("group", "task", "outcome", "attempt", "samples"),
    ),
    "queue": SpanForm("rollout", "INTERNAL", "From the prompt's writing until it is admitted and has a place."),
    "generate": SpanForm(
        "rollout", "INTERNAL", "From taking the prompt to its whole group, with all retries and turns."
    ),
    "engine": SpanForm(
        "rollout, gateway",
        "CLIENT",
        "One request to a worker: an attempt, or a turn. vLLM's own spans are below it.",
        ("worker", "samples", "prompt_tokens", "response_tokens"),
    ),
    "environment": SpanForm("rollout", "INTERNAL", "One step of an environment.", ("environment", "sample", "turn")),
    "score": SpanForm("rollout", "INTERNAL", "One reward of a group, until it is there.", ("reward",)),
    "assemble": SpanForm("rollout", "INTERNAL", "The records of the group's bundle.", ("groups",)),
    "write": SpanForm("rollout", "INTERNAL", "From the end of the bundle until its transaction is committed."),
    "exchange": SpanForm(
        "gateway", "SERVER", "A question of a person or a program, until its row is acknowledged.", ("group", "task")
    ),
    "judgement": SpanForm(
        "gateway", "SERVER", "What somebody says of an answer, until it is acknowledged.", ("rollout", "kind")
    ),
    "join": SpanForm(
        "join-feedback",
        "CONSUMER",
        "From the group's writing to pending until a decision about it is committed. Linked with the judgements.",
        ("group", "outcome", "judgements"),
    ),
    "learn": SpanForm(
        "learn",
        "CONSUMER",
        "From reading the group until the step that trained it is committed. Linked with the step.",
        ("group", "step", "generation", "version"),
    ),
    "step": SpanForm(
        "learn",
        "INTERNAL",
        "A step, from its plan to its commit, in a trace of its own. Linked with its groups.",
        ("step", "generation", "version", "groups"),
    ),
    "train": SpanForm("learn", "INTERNAL", "Forward, backward and the update."),
    "publish": SpanForm("learn", "INTERNAL", "Writing the weights, beside the next step.", ("version",)),
    "commit": SpanForm("learn", "INTERNAL", "The step's transaction."),
    "load": SpanForm(
        "worker",
        "CONSUMER",
        "A version of the weights, from its announcement's arrival until the engine answers by it, or it is refused. "
        "Below the step that made it.",
        ("version", "seen_s", "verify_s", "open_s", "pause_s", "load_s", "probe_s"),
    ),
}
"""All spans there are, by their names."""

_LOCK: Final = threading.Lock()
_tracer: "Tracer | None" = None
"""Of the process."""


def open_tracing(config: TracingConfig, run: str, process: Process) -> None:
    """Has this process record spans from now on, where the configuration says so; twice is once.

    Raises:
        ConfigError: OpenTelemetry is not installed, or the directory cannot be written to.
    """
    global _tracer  # noqa: PLW0603 - a process has one
    key = (config.model_dump_json(), run, process, os.getpid())
    with _LOCK:
        if _tracer is not None and _tracer.key == key:
            return
        if _tracer is not None:
            _tracer.close()
        _tracer = None if config.exporter == "none" else _open(config, run, process, key)


def _open(config: TracingConfig, run: str, process: Process, key: tuple[Any, ...]) -> "Tracer":
    try:
        from schemas.tracers import Tracer
    except ImportError as error:
        raise ConfigError(
            f"tracing.exporter = {config.exporter!r} needs OpenTelemetry, and {error.name} is not installed: "
            'pip install "asyncflow-rl[tracing]", or set it to "none"'
        ) from error
    return Tracer(config, run, process, key)


def close_tracing() -> None:
    """Sends what waits; nothing is recorded any more. The end of a process does this too."""
    global _tracer  # noqa: PLW0603 - a process has one
    with _LOCK:
        if _tracer is not None:
            _tracer.close()
        _tracer = None


def begin(name: str, given: str | bytes | None, source: str) -> TraceContext | None:
    """The span of something that arrives here: below the one that a ``traceparent`` names, else the first of a trace.

    Args:
        name: of what arrives, which no other thing has; the span's id comes from it alone.
        given: a ``traceparent``, if there is one; one that is broken is counted, and counts as none.
        source: where it came, for that figure.

    Returns:
        Null where tracing is off.
    """
    if _tracer is None:
        return None
    above = _read(TraceContext.parse, given, source)
    return above.child(name) if above else TraceContext.begin(name, _tracer.ratio)


def begin_at(record: Any) -> TraceContext | None:
    """As :func:`begin`, of a Kafka record: by its headers, and under the name of its place.

    Its timestamp is part of that: a run that is started anew under an old name has the same places.
    """
    if _tracer is None:
        return None
    name = f"{record.topic}/{record.partition}/{record.offset}@{record.timestamp}"
    return begin(name, dict(record.headers).get(HEADER), record.topic)


def given_in(record: Any) -> TraceContext | None:
    """The span that the headers of a Kafka record name; null where there is none, or tracing is off."""
    if _tracer is None:
        return None
    return _read(TraceContext.parse, dict(record.headers).get(HEADER), record.topic)


def groups_in(record: Any) -> dict[GroupId, TraceContext]:
    """The spans of the groups of a Kafka record; empty where there are none, or tracing is off."""
    if _tracer is None:
        return {}
    return _read(decode_groups, dict(record.headers).get(GROUPS_HEADER), record.topic) or {}


def _read(reader: Callable[[Any], _T], value: str | bytes | None, source: str) -> _T | None:
    """Trace headers are never an error of what they come with."""
    if value is None:
        return None
    try:
        return reader(value)
    except ValueError:
        HEADERS_IGNORED.labels(source).inc()
        return None


def headers_of(context: TraceContext | None) -> list[tuple[str, bytes]]:
    """The Kafka headers by which others go on with a span's trace; none where it has no context."""
    return [] if context is None else [(HEADER, context.header().encode())]


@dataclass(slots=True)
class Span:
    """What is told of a span once it has ended."""

    context: TraceContext | None
    """Null where nothing is traced."""
    name: str
    """One of ``SPANS``."""
    began_s: float
    """Since 1970, as all times here."""
    ended_s: float = 0.0
    attributes: dict[str, Any] = field(default_factory=dict)
    """Without their prefix."""
    links: tuple[TraceContext, ...] = ()
    fault: str | None = None
    """Why it failed; null if it did not."""


def record(span: Span) -> None:
    """Hands a span over to be sent, if it is to be recorded; returns at once, and never fails."""
    if span.context is None or not span.context.sampled or (tracer := _tracer) is None:
        return
    try:
        tracer.record(span, span.context)
    except Exception as error:  # noqa: BLE001 - what is told of the work must not end it
        SPANS_LOST.labels(span.name).inc()
        _LOG.warning("span_lost", span=span.name, error=fault_of(error))


def fault_of(error: BaseException) -> str:
    """An error as spans have it, which may have any length."""
    return repr(error)[:_FAULT_CHARACTERS]


def below(context: TraceContext | None) -> TraceContext | None:
    """A new span below another one; null where nothing is traced."""
    return None if context is None else context.child()


@contextmanager
def spanning(context: TraceContext | None, name: str, **attributes: Any) -> Iterator[Span]:
    """Records what happens within; what is raised is its fault.

    Args:
        context: the span's own, see :func:`below`; null where nothing is traced.
        name: one of ``SPANS``.
        attributes: as far as they are known; more can be entered in the span that is yielded.
    """
    span = Span(context, name, time.time(), attributes=attributes)
    try:
        yield span
    except BaseException as error:
        span.fault = fault_of(error)
        raise
    finally:
        span.ended_s = time.time()
        record(span)
