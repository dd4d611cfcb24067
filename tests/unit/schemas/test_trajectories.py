"""Trajectories records: what was written is read; anything else is refused with a reason."""

import hashlib
import math
import struct
import tracemalloc
from itertools import accumulate

import pyarrow as pa
import pytest

from schemas.arrow_messages import decoded_size_bytes, read_messages
from schemas.errors import RecordError
from schemas.identity import GroupId
from schemas.limits import MAX_DECODED_BYTES
from schemas.trajectories import (
    FINGERPRINT,
    SCHEMA,
    Span,
    decode,
    decode_again,
    decode_columns,
    encode,
    find_fault,
    fingerprint,
    groups_named_in,
)
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


def test_some_columns_are_read_under_the_same_distrust():
    value, headers = encode([*group(offset=38), *group(partition=1, offset=7, reward=None)])
    read = decode_columns(value, headers, ("reward", "prompt_offset"))
    assert read.to_pydict() == {"reward": [1.0, 1.0, None, None], "prompt_offset": [38, 38, 7, 7]}
    for damaged, told in ((value[:-9], headers), (value, {**headers, "rows": b"3"}), (None, headers)):
        with pytest.raises(RecordError):
            decode_columns(damaged, told, ("reward",))


def test_what_was_read_before_is_read_again_alike():
    value, headers = encode(group(0, 38, 3))
    assert [decode_again(value)] == decode(value, headers)


def test_the_schema_is_version_1_as_published():
    assert FINGERPRINT == "0a5e5eb17848b27f"
    assert fingerprint(SCHEMA.remove(0)) != FINGERPRINT
    assert fingerprint(SCHEMA.set(0, pa.field("run", pa.string(), True))) != FINGERPRINT


def test_every_truncation_is_refused():
    value, headers = encode(group())
    for length in range(len(value)):
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


def resigned(value, headers, **changes):
    digest = hashlib.sha256(value).hexdigest().encode()
    return value, {**headers, "sha256": digest, **{name: str(text).encode() for name, text in changes.items()}}


def is_harmless(value, headers):
    """Refused, or read as whole valid groups that mean the same when they are written again."""
    try:
        samples = [sample for members in decode(value, headers) for sample in members]
    except RecordError:
        return True
    again = [sample for members in decode(*encode(samples)) for sample in members]
    return samples and all(find_fault(sample) is None for sample in samples) and repr(again) == repr(samples)


def rewritten(change=lambda table: table, *, schema=None, chunk=None, compression=None):
    """A record of two samples whose table was changed, with headers that fit."""
    table = change(pa.ipc.open_stream(encode(group())[0]).read_all())
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, schema or table.schema, options=options) as writer:
        writer.write_table(table, chunk)
    return resigned(sink.getvalue().to_pybytes(), encode(group())[1], rows=table.num_rows)


def with_column(name, cells):
    number = SCHEMA.get_field_index(name)
    return rewritten(lambda table: table.set_column(number, SCHEMA[number], pa.array(cells, SCHEMA[number].type)))


def test_every_flipped_byte_with_a_right_hash_is_refused_or_harmless():
    value, headers = encode(group(size=3))
    for position in range(len(value)):
        broken = bytearray(value)
        broken[position] ^= (0xFF, 1 << position % 8)[position % 2]
        assert is_harmless(*resigned(bytes(broken), headers)), position


def test_every_truncation_with_a_right_hash_is_refused_but_the_one_before_the_end_marker():
    value, headers = encode(group())
    end_marker_bytes = 8
    for length in range(len(value) - end_marker_bytes):
        assert refused(*resigned(value[:length], headers)) == "bad_arrow", length
    assert len(decode(*resigned(value[:-end_marker_bytes], headers))[0]) == 2


def test_a_record_of_several_batches_is_read_and_every_cut_at_a_message_is_refused():
    value, headers = rewritten(chunk=1)
    assert len(decode(value, headers)[0]) == 2
    marks = list(accumulate(message.serialize().size for message in read_messages(value)))
    assert len(marks) == 3
    assert refused(*resigned(value[: marks[1]], headers)) == "bad_arrow"  # one row of two
    assert len(decode(*resigned(value[: marks[1]], headers, rows=1))[0]) == 1
    without_first = value[: marks[0]] + value[marks[1] :]
    assert refused(*resigned(without_first, headers, rows=1)) == "bad_row"


def test_a_first_message_of_any_other_type_is_refused():
    value, headers = encode(group())
    metadata = 8  # after the continuation mark and the length
    table = metadata + struct.unpack_from("<I", value, metadata)[0]
    vtable = table - struct.unpack_from("<i", value, table)[0]
    header_type = table + struct.unpack_from("<H", value, vtable + 6)[0]
    assert value[header_type] == 1
    for other in (0, *range(2, 256)):
        broken = bytearray(value)
        broken[header_type] = other
        assert refused(*resigned(bytes(broken), headers)) == "bad_arrow"


def test_an_offset_that_leads_out_of_its_column_is_refused():
    value, headers = encode(group(size=2, worker="w" * 9))
    broken, offsets = bytearray(value), struct.pack("<3i", 0, 9, 18)
    assert value.count(offsets) == 1
    broken[value.index(offsets) + 8] = 127
    assert refused(*resigned(bytes(broken), headers)) == "bad_arrow"


def test_a_record_without_rows_is_refused():
    assert refused(*rewritten(lambda table: table.slice(0, 0))) == "bad_arrow"


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_record_is_read(compression):
    assert decode(*rewritten(compression=compression)) == decode(*rewritten())


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.remove_column(5),
        lambda table: table.add_column(5, "more", table.column(0)),
        lambda table: table.add_column(5, SCHEMA[5], table.column(5)),
        lambda table: table.select(table.column_names[::-1]),
        lambda table: table.rename_columns([*table.column_names[:-1], "text"]),
        lambda table: table.set_column(3, "sample_index", table.column(3).cast(pa.int64())),
        lambda table: table.set_column(15, "reward", table.column(15).cast(pa.float64())),
        lambda table: table.set_column(0, "run", table.column(0).dictionary_encode()),
        lambda table: table.set_column(0, pa.field("run", pa.string(), True), table.column(0)),
        lambda table: table.select(range(1, 23)).rename_columns(
            ["run:string:False\nprompt_partition", *table.column_names[2:]]
        ),
    ],
    ids=["missing", "extra", "double", "reordered", "renamed", "wider", "float64", "dictionary", "nullable", "forged"],
)
def test_a_stream_of_another_schema_is_refused_whatever_its_header_says(change):
    assert refused(*rewritten(change)) == "old_schema"


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("run", ["demo", None]),
        ("prompt_offset", [None, 38]),
        ("response_token_ids", [[11, None, 2], [11, 12, 2]]),
        ("response_logprobs", [None, [-0.5, -1.25, -0.125]]),
        ("loss_mask", [[True, None, True]] * 2),
        ("weight_version_spans", [[{"version": 11, "start": 0}, {"version": 12, "start": None}]] * 2),
        ("weight_version_spans", [[{"version": 11, "start": 0}, None]] * 2),
        ("reward_parts", [None, []]),
        ("prompt_at", [None, 0]),
        ("prompt_at", [2**62, 0]),
        ("reward_parts", [[("a", None)], []]),
        ("reward_parts", [[("a", math.nan)], []]),
        ("reward_parts", [[("a", 1.0), ("a", 2.0)], []]),
        ("response_token_ids", [[11, 12, -(2**31)]] * 2),
        ("weight_version_spans", [[{"version": 12, "start": 2}, {"version": 11, "start": 0}]] * 2),
        ("weight_version_max", [11, 11]),
        ("weight_version_spans", [[{"version": -1, "start": 0}]] * 2),
        ("prompt_token_ids", [[3, 78, 4], [3, 78, 5]]),
        ("run", ["demo", "other"]),
        ("sample_index", [0, 1024]),
        ("attempt_id", ["a1", "a2"]),
    ],
)
def test_values_that_fit_their_type_but_not_their_meaning_are_refused(name, cells):
    assert refused(*with_column(name, cells)) == "bad_row"


def test_two_attempts_of_one_group_in_a_record_are_refused():
    assert refused(*encode([*group(), *group(attempt_id="a2")])) == "bad_row"


def test_of_a_group_that_was_split_over_two_records_only_the_first_is_read():
    first, second = encode(group(size=4)[:2]), encode(group(size=4)[2:])
    assert len(decode(*first)[0]) == 2  # no row says how many there should be
    assert refused(*second) == "bad_row"


def test_versions_and_token_ids_that_only_the_learner_knows_to_be_wrong_are_read():
    future = group(weight_version_spans=(Span(2**62, 0),), weight_version_min=2**62, weight_version_max=2**62)
    assert decode(*encode(future))[0][0].weight_version_max == 2**62
    assert decode(*encode(group(response_token_ids=(1, 2, 2**31 - 1))))[0][0].response_token_ids[2] == 2**31 - 1


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("name", ["schema", "fingerprint", "rows", "sha256"])
@pytest.mark.parametrize("text", [None, b"", b"\xff\xfe", b"NaN", b"-2", b"9" * 5000, b"[" * 100_000])
def test_a_header_that_is_null_or_rubbish_is_refused(name, text):
    value, headers = encode(group())
    assert refused(value, {**headers, name: text}) in {"bad_headers", "old_schema", "bad_sha256", "bad_arrow"}


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    "text",
    [None, b"", b"\xff", b"{}", b'["12"]', b"[[0]]", b"[[0,1.5]]", b"[[0,null]]", b'[["0","1"]]', b"[[0,1e400]]",
     b"[[true,1]]", b"[" * 100_000, b"[[0,Infinity]]"],
)  # fmt: skip
def test_groups_that_cannot_be_read_are_no_groups(text):
    assert groups_named_in({"groups": text}) == []
    assert groups_named_in({}) == []


def test_the_rows_of_a_good_value_count_and_not_the_groups_of_its_header():
    value, headers = encode(group(offset=38))
    for lie in (b"[[0,39]]", b"[]", b"\xff", None):
        assert decode(value, {**headers, "groups": lie})[0][0].group == GroupId(0, 38)


def test_a_detail_does_not_quote_megabytes():
    spans = tuple(Span(11, 2 * start) for start in range(100_000))
    with pytest.raises(RecordError) as caught:
        decode(*encode(group(weight_version_spans=spans)))
    assert len(caught.value.detail) <= 300


def batches_of(value):
    return [message for message in read_messages(value) if message.type == "record batch"]


def bomb(column, cells):
    number = SCHEMA.get_field_index(column)

    def swell(table):
        return table.set_column(number, SCHEMA[number], pa.array(cells, SCHEMA[number].type))

    return rewritten(swell, compression="zstd")


def test_a_bomb_is_refused_before_it_is_decompressed(monkeypatch):
    assert decode(*bomb("response_text", ["x" * (MAX_DECODED_BYTES // 4)] * 2))
    value, headers = bomb("response_text", ["x" * (MAX_DECODED_BYTES // 2 + 1)] * 2)
    assert len(value) < 100_000
    monkeypatch.setattr(pa.ipc, "read_record_batch", lambda *_: pytest.fail("it was decompressed"))
    assert refused(value, headers) == "too_large"


def test_batches_count_together_towards_the_cap(monkeypatch):
    value, headers = rewritten(chunk=1)
    monkeypatch.setattr("schemas.trajectories.MAX_DECODED_BYTES", sum(map(decoded_size_bytes, batches_of(value))))
    assert decode(value, headers)
    monkeypatch.setattr("schemas.trajectories.MAX_DECODED_BYTES", sum(map(decoded_size_bytes, batches_of(value))) - 1)
    assert refused(value, headers) == "too_large"


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_the_size_is_known_without_decompressing(compression):
    value, _ = rewritten(compression=compression)
    plain, _ = rewritten()
    (ours,), (written,) = batches_of(value), batches_of(plain)
    assert abs(decoded_size_bytes(ours) - len(written.body)) < 8 * 2 * 40  # padding of some 40 buffers


def test_a_mask_of_millions_of_bits_never_becomes_a_list():
    many = 4_000_000
    value, headers = bomb("loss_mask", [[True] * many, [True] * 3])
    assert len(value) < 100_000
    tracemalloc.start()
    assert refused(value, headers) == "bad_row"
    assert tracemalloc.get_traced_memory()[1] < many
    tracemalloc.stop()


@pytest.mark.parametrize("claimed", [2**31, 2**40, 2**62, -(2**63), -2])
def test_a_claimed_length_of_a_buffer_is_not_believed(claimed):
    value, headers = rewritten(compression="zstd")
    body = list(accumulate(message.serialize().size for message in read_messages(value)))[1]
    (batch,) = batches_of(value)
    start = body - len(batch.body)
    broken = bytearray(value)
    broken[start : start + 8] = struct.pack("<q", claimed)
    assert refused(*resigned(bytes(broken), headers)) == ("too_large" if claimed > 0 else "bad_arrow")
