"""Trajectories records: what was written is read; anything else is refused with a reason."""

import math

import pyarrow as pa
import pytest

from schemas.errors import RecordError
from schemas.identity import GroupId
from schemas.trajectories import FINGERPRINT, SCHEMA, Span, decode, encode, fingerprint, groups_named_in
from tests.support.samples import group


def refused(value, headers):
    with pytest.raises(RecordError) as caught:
        decode(value, headers)
    return caught.value.reason


def test_groups_come_back_as_they_were_written():
    first, second = group(offset=38), group(partition=1, offset=7, reward=None, reward_error="timeout", prompt_id=None)
    value, headers = encode([*first, *second])
    read = decode(value, headers)
    assert [members[0].group for members in read] == [GroupId(0, 38), GroupId(1, 7)]
    assert read[1][0].reward is None
    assert read[0][1].response_token_ids == [11, 12, 2]
    assert read[0][0].weight_version_spans == (Span(11, 0), Span(12, 2))
    assert read[0][0].prompt_at == first[0].prompt_at
    assert groups_named_in(headers) == [GroupId(0, 38), GroupId(1, 7)]


def test_the_schema_is_version_1_as_published():
    assert FINGERPRINT == "0a5e5eb17848b27f"
    assert fingerprint(SCHEMA.remove(0)) != FINGERPRINT
    assert fingerprint(SCHEMA.set(0, pa.field("run", pa.string(), True))) != FINGERPRINT


def test_every_truncation_is_refused():
    value, headers = encode(group())
    for length in range(0, len(value), 7):
        assert refused(value[:length], headers) == "bad_sha256"


def test_every_missing_header_is_refused():
    value, headers = encode(group())
    for name in ("schema", "fingerprint", "rows", "sha256"):
        assert refused(value, {key: text for key, text in headers.items() if key != name}) == "bad_headers"
    assert refused(value, {**headers, "rows": b"x"}) == "bad_headers"
    assert refused(value, {**headers, "rows": b"3"}) == "bad_arrow"
    assert refused(value, {**headers, "schema": b"2"}) == "old_schema"
    assert refused(None, headers) == "bad_arrow"


@pytest.mark.parametrize(
    "changes",
    [
        {"response_logprobs": (-0.5, -1.25)},
        {"loss_mask": (True,)},
        {"response_logprobs": (-0.5, math.nan, -0.1)},
        {"response_logprobs": (-0.5, 0.7, -0.1)},
        {"response_logprobs": (-0.5, -math.inf, -0.1)},
        {"reward": math.nan},
        {"reward": math.inf},
        {"response_token_ids": (1, -2, 3)},
        {"prompt_token_ids": ()},
        {"prompt_offset": -1},
        {"weight_version_spans": ()},
        {"weight_version_spans": (Span(11, 1), Span(12, 2))},
        {"weight_version_spans": (Span(11, 0), Span(12, 3))},
        {"weight_version_spans": (Span(11, 0), Span(12, 0))},
        {"weight_version_min": 10},
        {"response_token_ids": (), "response_logprobs": (), "loss_mask": ()},
    ],
)
def test_a_value_outside_its_domain_is_refused(changes):
    value, headers = encode(group(**changes))
    assert refused(value, headers) == "bad_row"


def test_a_group_must_be_whole_and_of_one_attempt():
    first, second = group()
    assert refused(*encode([second])) == "bad_row"
    assert refused(*encode([first, first])) == "bad_row"
    assert refused(*encode([first, group(attempt_id="a2")[1]])) == "bad_row"


def resigned(value, headers):
    import hashlib

    return value, {**headers, "sha256": hashlib.sha256(value).hexdigest().encode()}


def test_corrupt_arrow_with_a_right_hash_never_kills_the_reader():
    value, headers = encode(group(size=3))
    for position in range(0, len(value), 3):
        broken = bytearray(value)
        broken[position] ^= 0xFF
        try:
            decode(*resigned(bytes(broken), headers))
        except RecordError:
            continue


def test_a_stream_that_expands_beyond_the_cap_is_refused():
    bomb = pa.table({"text": pa.array(["x" * (300 << 20)])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, bomb.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(bomb)
    _, headers = encode(group())
    assert refused(*resigned(sink.getvalue().to_pybytes(), headers)) == "old_schema"
