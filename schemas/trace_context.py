"""Which span of which trace a record belongs to, as Kafka headers say it in W3C's form.

    prompts, feedback, weights   ``traceparent``: ``00-{trace id}-{span id}-{flags}``
    trajectories, pending        ``traceparents``: JSON, ``[[[0, 38], "00-…-01"], …]``, one for each group

A record of the two latter holds groups of many traces. The standard header has room for one: a reader that took it for
all would hang every group on one trace. Links would need a span of the record to hang on, and a group is
what people look for. So there is a header of our own beside ``groups`` and ``raters``, which a reader that knows
nothing of it passes over.

Headers are no part of what a record is: its value, sha256, fingerprint and groups are the same with and without them.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from pydantic import ConfigDict, TypeAdapter

from schemas.identity import GroupId

HEADER: Final = "traceparent"
"""W3C's, of records and of HTTP requests."""
GROUPS_HEADER: Final = "traceparents"
"""Ours, of records that hold groups."""
_FORM: Final = re.compile(r"(?P<version>[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?P<more>-.*)?")
_NEVER_VERSION: Final = "ff"
_SAMPLED: Final = 1
_NAMED: Final = TypeAdapter(list[tuple[tuple[int, int], str]], config=ConfigDict(strict=True))
_TRACE_DIGITS: Final = 32
_SPAN_DIGITS: Final = 16


class TraceContext(NamedTuple):
    """One span: in which trace it is, its name there, and the span above it.

    Example: ``TraceContext.parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")``.
    """

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    """Whether it is recorded, by whoever takes part in the trace."""
    parent_id: str | None = None
    """The span above it; null where it is the first, or came from elsewhere."""

    @classmethod
    def parse(cls, value: str | bytes) -> Self:
        """Reads a ``traceparent``.

        Raises:
            ValueError: it has another form, or an id of zeros.
        """
        text = value.decode("ascii") if isinstance(value, bytes) else value
        match = _FORM.fullmatch(text)
        if match is None or match["version"] == _NEVER_VERSION or (match["version"] == "00" and match["more"]):
            raise ValueError(
                f"traceparent {text[:80]!r}: expected 00-TRACE-SPAN-FLAGS in lower-case hexadecimal digits"
            )
        trace_id, span_id, flags = match[2], match[3], int(match[4], 16)
        if not int(trace_id, 16) or not int(span_id, 16):
            raise ValueError(f"traceparent {text[:80]!r}: an id of zeros is none")
        return cls(trace_id, span_id, bool(flags & _SAMPLED))

    @classmethod
    def begin(cls, name: str, ratio: float) -> Self:
        """The first span of a trace that nobody has begun.

        Ids are drawn from the name alone, and so is whether it is recorded: a process that takes over from one that
        died goes on with the same trace, below the same span. The rule of the ratio is that of OpenTelemetry's
        ``TraceIdRatioBased``: the lower 64 bits of the trace's id against the ratio.

        Args:
            name: of what is traced; no two things have the same.
            ratio: of such traces, how many are recorded, from 0 to 1.
        """
        digits = hashlib.sha256(name.encode()).hexdigest()
        trace_id, span_id = digits[:_TRACE_DIGITS], digits[_TRACE_DIGITS : _TRACE_DIGITS + _SPAN_DIGITS]
        return cls(trace_id, span_id, int(trace_id[_SPAN_DIGITS:], 16) < ratio * 2**64)

    def child(self, name: str | None = None) -> "TraceContext":
        """A span below this one: of the id that a name gives it, or of one that is drawn at random."""
        if name is None:
            span_id = secrets.token_hex(_SPAN_DIGITS // 2)
        else:
            span_id = hashlib.sha256(f"{self.trace_id}/{self.span_id}/{name}".encode()).hexdigest()[:_SPAN_DIGITS]
        return TraceContext(self.trace_id, span_id, self.sampled, self.span_id)

    def header(self) -> str:
        """The ``traceparent`` of what comes after it."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def encode_groups(contexts: Mapping[GroupId, TraceContext]) -> bytes:
    """The header of a record that holds groups."""
    named = [[group, context.header()] for group, context in contexts.items()]
    return json.dumps(named, separators=(",", ":")).encode()


def decode_groups(value: bytes) -> dict[GroupId, TraceContext]:
    """The inverse of :func:`encode_groups`.

    Raises:
        ValueError: it has another form.
    """
    named = _NAMED.validate_json(value)
    return {GroupId(partition, offset): TraceContext.parse(text) for (partition, offset), text in named}
