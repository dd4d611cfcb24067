"""Damaged trajectories records: what accidents, wrong programs and hostile ones may put into the topic.

    valid record ──► one kind of damage, drawn ──► headers made to match ──► decode

The sha256 would hide nearly all of this, so every kind but ``headers`` signs its record anew.
"""

import hashlib
import math
from functools import cache
from itertools import accumulate, pairwise

import pyarrow as pa

from schemas.arrow_messages import read_messages
from schemas.limits import MAX_DECODED_BYTES
from schemas.trajectories import SCHEMA, Span, encode
from tests.support.samples import group

_WORDS = (0, 1, 2, 3, 7, 8, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
_NUMBERS = (0.0, -0.0, -1.5, 0.5, 1e-4, 1e30, math.nan, math.inf, -math.inf, None)
_POOLS = {
    pa.string(): ("", "a", "stop", "\0", "\U0001f600" * 3, "x" * 5000, None),
    pa.int32(): (0, 1, 2, -1, 1024, 2**31 - 1, -(2**31), None),
    pa.int64(): (0, 1, 11, 12, -1, 2**40, 2**63 - 1, -(2**63), None),
    pa.float32(): _NUMBERS,
    pa.bool_(): (True, False, None),
    pa.timestamp("us", tz="UTC"): (0, 1_769_860_800_000_000, -1, 2**63 - 1, -(2**63), None),
}


@cache
def valid_records():
    """Values with headers that are read: small and larger, compressed, of several batches and groups."""
    two = [*group(size=2), *group(partition=1, offset=7, reward=None, reward_error="timeout", prompt_id=None)]
    long = group(
        size=3, response_token_ids=tuple(range(40)), response_logprobs=(-0.5,) * 40, loss_mask=(True, False) * 20,
        weight_version_spans=(Span(3, 0), Span(12, 7), Span(5, 39)), weight_version_min=3, response_text="x" * 300,
    )  # fmt: skip
    tables = [read_table(encode(samples)[0]) for samples in (group(size=1), group(), two, long)]
    made = [write(table.to_batches()) for table in tables]
    made += [write(table.to_batches(max_chunksize=1)) for table in tables[1:]]
    made += [write(table.to_batches(), compression=name) for table in tables for name in ("zstd", "lz4")]
    return [sign(value, rows) for value, rows in made]


def read_table(value):
    return pa.ipc.open_stream(value).read_all()


def write(batches, schema=None, compression=None):
    """The value of a record of these batches, and its number of rows."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, schema or batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes(), sum(batch.num_rows for batch in batches)


def sign(value, rows):
    """The value with headers that match it."""
    _, headers = encode(group(size=1))
    return value, {**headers, "rows": str(rows).encode(), "sha256": hashlib.sha256(value).hexdigest().encode()}


def _pick(draw):
    value, headers = draw.choice(valid_records())
    return bytearray(value), int(headers["rows"])


def _edit(draw, damage):
    value, rows = _pick(draw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = damage(draw, value) or value
    return sign(bytes(value), rows)


def _flip(draw, value):
    value[draw.randrange(len(value))] ^= 1 << draw.randrange(8)


def _overwrite(draw, value):
    value[draw.randrange(len(value))] = draw.randrange(256)


def _set_word(draw, value):
    """An offset, a length, a count or a pointer that is wrong: everything in Arrow is an aligned word."""
    size = draw.choice((2, 4, 4, 8))
    at = draw.randrange(len(value) // size) * size
    here = int.from_bytes(value[at : at + size], "little")
    word = draw.choice((*_WORDS, here + 1, here - 1, here * 2, here + 8, draw.getrandbits(16)))
    value[at : at + size] = (word % 2 ** (8 * size)).to_bytes(size, "little")


def _cut(draw, value):
    start = draw.randrange(len(value))
    return value[:start] + value[start + draw.randrange(1, 64) :]


def _insert(draw, value):
    start, length = draw.randrange(len(value)), draw.randrange(1, 64)
    return value[:start] + draw.choice((bytes(length), draw.randbytes(length))) + value[start:]


def _copy(draw, value):
    start, target, length = draw.randrange(len(value)), draw.randrange(len(value)), draw.randrange(1, 200)
    return value[:target] + value[start : start + length] + value[target + length :]


def _splice(draw, value):
    other, _ = _pick(draw)
    return value[: draw.randrange(len(value))] + other[draw.randrange(len(other)) :]


def truncation(draw):
    value, rows = _pick(draw)
    return sign(bytes(value[: draw.randrange(len(value))]), rows)


def message_boundaries(value):
    """Where each message of a valid stream begins, and where the last ends."""
    return [0, *accumulate(message.serialize().size for message in read_messages(value))]


@cache
def _pieces(value):
    """Schema message, record batches and end marker of a valid stream, each with its number of rows."""
    sizes = [0, *(batch.num_rows for batch in pa.ipc.open_stream(value)), 0]
    marks = [*message_boundaries(value), len(value)]
    return [(value[start:end], rows) for (start, end), rows in zip(pairwise(marks), sizes, strict=True)]


def messages(draw):
    """Whole messages are missing, double or in another order."""
    here, there = (_pieces(draw.choice(valid_records())[0]) for _ in range(2))
    body = draw.choice((here, here + there))
    chosen = [draw.choice(body) for _ in range(draw.randrange(4))]
    chosen = here[: draw.random() < 0.9] + chosen + here[-1:] * (draw.random() < 0.5)
    rows = draw.choice((0, 1, 2, *[sum(rows for _, rows in chosen)] * 5))
    return sign(b"".join(piece for piece, _ in chosen), rows)


def headers(draw):
    """Headers that are missing, null, no text or a lie; the value is whole."""
    value, honest = draw.choice(valid_records())
    damaged = dict(honest)
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(list(honest))
        damaged[name] = draw.choice((None, b"", b"\xff\xfe", b"2", b"-1", b"4", b" 4 ", b"NaN", b"[[0,1e400]]",
                                     b"[" * 100_000, b"9" * 5000, draw.randbytes(16), honest["sha256"]))  # fmt: skip
        if draw.random() < 0.3:
            del damaged[name]
    return value, damaged


def _value_of(draw, kind):
    """Something that the type can hold, sensible or not."""
    if pa.types.is_map(kind):
        keys = [draw.choice(("a", "b", "")) for _ in range(draw.randrange(3))]
        return draw.choice([[(key, draw.choice(_NUMBERS)) for key in keys], None])
    if pa.types.is_list(kind):
        length = draw.choice((0, 1, 2, 3, 3, 4, 50))
        return draw.choice([[_value_of(draw, kind.value_type) for _ in range(length)]] * 9 + [None])
    if pa.types.is_struct(kind):
        return draw.choice([{field.name: _value_of(draw, field.type) for field in kind}] * 9 + [None])
    return draw.choice(_POOLS[kind])


def cells(draw):
    """Right types with wrong values: nulls, NaN, infinities, negative and huge ids, lists and spans that do not fit."""
    value, _ = _pick(draw)
    table = read_table(bytes(value))
    for _ in range(draw.choice((1, 1, 2, 5))):
        number = draw.randrange(len(SCHEMA))
        cells = table.column(number).to_pylist() if number not in (20, 21) else [0] * table.num_rows
        cells[draw.randrange(len(cells))] = _value_of(draw, SCHEMA[number].type)
        table = table.set_column(number, SCHEMA[number], pa.array(cells, SCHEMA[number].type))
    return _signed_table(draw, table)


def rows(draw):
    """Rows are missing, double, in another order or of other groups and attempts."""
    value, _ = _pick(draw)
    other, _ = _pick(draw)
    table = pa.concat_tables([read_table(bytes(value)), read_table(bytes(other))])
    taken = [draw.randrange(table.num_rows) for _ in range(draw.randrange(6))]
    return _signed_table(draw, table.take(pa.array(taken, pa.int64())))


def columns(draw):
    """Columns are missing, added, renamed, double, in another order or of another type."""
    value, _ = _pick(draw)
    table = read_table(bytes(value))
    number = draw.randrange(len(SCHEMA))
    column, field = table.column(number), SCHEMA[number]
    change = draw.randrange(8)
    if change == 0:
        table = table.remove_column(number)
    elif change == 1:
        table = table.add_column(number, draw.choice((field, pa.field("more", field.type))), column)
    elif change == 2:
        table = table.set_column(
            number, pa.field(draw.choice((field.name + "_", "", _forged(number))), field.type), column
        )
    elif change == 3:
        order = list(table.column_names)
        draw.shuffle(order)
        table = table.select(order)
    elif change == 4:
        table = table.set_column(number, pa.field(field.name, field.type, not field.nullable), column)
    elif change == 5:
        table = table.set_column(number, field.name, pa.nulls(table.num_rows))
    elif change == 6:
        forged = pa.field(_forged(number), field.type, field.nullable)
        table = table.select(range(number, len(SCHEMA))).set_column(0, forged, column)
    else:
        table = table.set_column(number, field.name, pa.array([b"x"] * table.num_rows).dictionary_encode())
    return _signed_table(draw, table)


def _forged(number):
    """A name that reads like the columns up to this one in the text that the fingerprint is made of."""
    before = [f"{column.name}:{column.type}:{column.nullable}" for column in list(SCHEMA)[:number]]
    return "\n".join([*before, SCHEMA[number].name])


def _signed_table(draw, table):
    table = table.combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    return sign(*write(batches, table.schema, compression=draw.choice((None, None, "zstd"))))


@cache
def _bombs():
    """Records of a few kilobytes that claim to be some hundred megabytes and, in part, are."""
    samples = group(size=1, response_text="x" * (MAX_DECODED_BYTES + 1))
    text = write(read_table(encode(samples)[0]).to_batches(), compression="zstd")
    table = read_table(encode(group(size=1))[0])
    bits = pa.repeat(pa.scalar(True), 8 * MAX_DECODED_BYTES // 2)
    mask = pa.ListArray.from_arrays(pa.array([0, len(bits)], pa.int32()), bits, SCHEMA.field("loss_mask").type)
    table = table.set_column(SCHEMA.get_field_index("loss_mask"), SCHEMA.field("loss_mask"), mask)
    return [text, write(table.to_batches(), compression="zstd"), write(table.to_batches(), compression="lz4")]


def bombs(draw):
    """Small records that would be large, and the lengths in front of compressed buffers changed."""
    if draw.random() < 0.1:
        return sign(*draw.choice(_bombs()))
    table = read_table(bytes(_pick(draw)[0]))
    made, rows = write(table.to_batches(), compression=draw.choice(("zstd", "lz4")))
    value = bytearray(made)
    _set_word_in_body(draw, value)
    return sign(bytes(value), rows)


def _set_word_in_body(draw, value):
    start = message_boundaries(bytes(value))[1]
    at = start + draw.randrange((len(value) - start) // 8) * 8
    value[at : at + 8] = draw.choice(_WORDS).to_bytes(8, "little")


RECORD_DAMAGE = {
    "bit flipped": lambda draw: _edit(draw, _flip),
    "byte overwritten": lambda draw: _edit(draw, _overwrite),
    "word replaced": lambda draw: _edit(draw, _set_word),
    "bytes cut out": lambda draw: _edit(draw, _cut),
    "bytes inserted": lambda draw: _edit(draw, _insert),
    "range copied": lambda draw: _edit(draw, _copy),
    "two records spliced": lambda draw: _edit(draw, _splice),
    "truncated": truncation,
    "messages rearranged": messages,
    "headers damaged": headers,
    "values changed": cells,
    "rows rearranged": rows,
    "columns changed": columns,
    "bomb": bombs,
}
"""From the kind of damage to a function of a ``random.Random`` that gives a value with headers."""
