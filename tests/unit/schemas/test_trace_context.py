"""Trace headers: W3C's form is read and written, rubbish is refused, ids come from names."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import GroupId
from schemas.trace_context import TraceContext, decode_groups, encode_groups

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_read_and_written():
    context = TraceContext.parse(HEADER)
    assert context == (TRACE, SPAN, True, None)
    assert context.header() == HEADER
    assert TraceContext.parse(HEADER.encode()) == context
    assert TraceContext.parse(f"00-{TRACE}-{SPAN}-00").sampled is False
    assert TraceContext.parse(f"00-{TRACE}-{SPAN}-03").sampled, "further flags mean something else"


def test_a_later_version_may_say_more():
    assert TraceContext.parse(f"01-{TRACE}-{SPAN}-01-what-comes-later").span_id == SPAN


@pytest.mark.parametrize(
    "broken",
    [
        "", "00", HEADER[:-1], HEADER + "0", HEADER + "-more", HEADER.upper(), f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f" {HEADER}", f"{HEADER}\n", b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_none_is_refused(broken):
    with pytest.raises(ValueError, match=r"traceparent|ascii"):
        TraceContext.parse(broken)


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80)))
def test_any_bytes_are_read_or_refused(value):
    with contextlib.suppress(ValueError):
        assert TraceContext.parse(value).header()


def test_ids_of_a_trace_come_from_its_name_alone():
    context = TraceContext.begin("demo.prompts/0/38@1769860800000", 1.0)
    assert context == TraceContext.begin("demo.prompts/0/38@1769860800000", 1.0)
    assert context.trace_id != TraceContext.begin("demo.prompts/0/39@1769860800000", 1.0).trace_id
    assert TraceContext.parse(context.header()) == context
    assert context.child("a") == context.child("a") != context.child("b")
    assert context.child() != context.child()
    assert context.child().parent_id == context.span_id


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (0.25, 180, 320), (1.0, 1000, 1000)])
def test_the_ratio_is_that_of_opentelemetry(ratio, least, most):
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    contexts = [TraceContext.begin(str(number), ratio) for number in range(1000)]
    sampler = TraceIdRatioBased(ratio)
    theirs = [sampler.should_sample(None, int(each.trace_id, 16), "x").decision.is_sampled() for each in contexts]
    assert [each.sampled for each in contexts] == theirs
    assert least <= sum(theirs) <= most


def test_groups_have_a_header_together():
    contexts = {GroupId(0, 38): TraceContext.parse(HEADER), GroupId(1, 7): TraceContext.begin("x", 0.0)}
    value = encode_groups(contexts)
    assert value.startswith(f'[[[0,38],"{HEADER}"],[[1,7],"00-'.encode())
    assert decode_groups(value) == contexts


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"{}", b"null", b"[1]", b'[[[0,38],"x"]]', b"[[[0,38],7]]", b"[[[0],1]]", b"[" * 100_000, b"\xff",
        b'[[["0",38],"x"]]', b"[[[1e999,0],1]]",
    ],
)  # fmt: skip
def test_a_header_of_groups_that_is_none_is_refused(broken):
    with pytest.raises(ValueError, match=r"valid|traceparent|expected"):
        decode_groups(broken)
