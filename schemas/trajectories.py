"""Records of ``{run}.trajectories`` and ``{run}.pending``: Arrow IPC streams of whole groups.

Written by the rollout pipeline (and the feedback pipeline), read by the learner, the audit and
anyone. One row is one sample; all rows of a group are in one record. The Kafka headers carry what
is needed to distrust the bytes: the schema's version and fingerprint, the number of rows, the
groups and the sha256 of the value; of rated groups who rated them, under a pseudonym; and of groups
that are traced the span that later ones go below (:mod:`schemas.trace_context`).
"""

import hashlib
import json
import math
import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cache
from itertools import count
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, get_args

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from schemas.arrow_messages import decoded_size_bytes, read_messages
from schemas.errors import RecordError
from schemas.identity import GroupId, RolloutId
from schemas.limits import MAX_DECODED_BYTES, MAX_GROUP_SIZE, MAX_RESPONSE_TOKENS, MAX_TRAJECTORY_BYTES
from schemas.prompts import Prompt
from schemas.trace_context import GROUPS_HEADER, TraceContext, encode_groups

SCHEMA_VERSION: Final = 1

_TIME = pa.timestamp("us", tz="UTC")
_SPAN = pa.struct([pa.field("version", pa.int64(), False), pa.field("start", pa.int32(), False)])


def _list(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", item, nullable=False))


SCHEMA: Final = pa.schema(
    [
        pa.field("run", pa.string(), False),
        pa.field("prompt_partition", pa.int32(), False),
        pa.field("prompt_offset", pa.int64(), False),
        pa.field("sample_index", pa.int32(), False),
        pa.field("attempt_id", pa.string(), False),
        pa.field("prompt_id", pa.string(), True),
        pa.field("task", pa.string(), False),
        pa.field("purpose", pa.string(), False),
        pa.field("prompt_token_ids", _list(pa.int32()), False),
        pa.field("response_token_ids", _list(pa.int32()), False),
        pa.field("response_logprobs", _list(pa.float32()), False),
        pa.field("loss_mask", _list(pa.bool_()), False),
        pa.field("weight_version_spans", _list(_SPAN), False),
        pa.field("weight_version_min", pa.int64(), False),
        pa.field("weight_version_max", pa.int64(), False),
        pa.field("reward", pa.float32(), True),
        pa.field("reward_parts", pa.map_(pa.string(), pa.float32()), False),
        pa.field("reward_error", pa.string(), True),
        pa.field("finish_reason", pa.string(), False),
        pa.field("worker", pa.string(), False),
        pa.field("prompt_at", _TIME, False),
        pa.field("generated_at", _TIME, False),
        pa.field("response_text", pa.string(), False),
    ]
)
"""Version 1 of a row. A change of any column is a new version; old versions stay readable."""


def fingerprint(schema: pa.Schema) -> str:
    """16 hexadecimal digits that differ whenever a name, type or nullability differs."""
    lines = [f"{column.name}:{column.type}:{column.nullable}" for column in schema]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


FINGERPRINT: Final = fingerprint(SCHEMA)


Purpose = Literal["train", "feedback", "correction", "demonstration"]
"""Of a row: a prompt whose reward is computed; one that people or programs rate; a difference that later feedback makes
to the reward of a sample that was trained; a text that somebody gave as the right answer."""
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)


class Span(NamedTuple):
    """From response token ``start`` on, ``version`` produced the tokens."""

    version: int
    start: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to one prompt: a row. T is the number of response tokens, P of prompt tokens."""

    run: str
    prompt_partition: int
    prompt_offset: int
    sample_index: int
    """0 to group size - 1."""
    attempt_id: str
    """Which attempt produced the group; equal in all its samples."""
    prompt_id: str | None
    """The producer's name of the prompt; null if it gave none."""
    task: str
    purpose: str
    """One of ``PURPOSES``."""
    prompt_token_ids: Sequence[int]
    """Length P."""
    response_token_ids: Sequence[int]
    """Length T, the end-of-sequence token included."""
    response_logprobs: Sequence[float]
    """Length T: natural logarithms under the distribution that was sampled from (temperature applied);
    0 for tokens that the model did not choose."""
    loss_mask: Sequence[bool]
    """Length T: False for tokens that the model did not choose (tools, users)."""
    weight_version_spans: Sequence[Span]
    """Length 1 or more, starts ascending from 0. Tokens that the model did not choose stand in the span
    of those before them."""
    weight_version_min: int
    weight_version_max: int
    reward: float | None
    """Null if it could not be computed or has not come yet."""
    reward_parts: dict[str, float]
    """Named parts that the reward was made of; may be empty."""
    reward_error: str | None
    """Why the reward is null; null if it is not, or is still awaited."""
    finish_reason: str
    """``stop``, ``length`` or ``abort``; of conversations also ``turns`` and ``time`` for the limit that
    ended them, and ``error`` for their environment's fault."""
    worker: str
    """The address of the engine that answered, last in a conversation."""
    prompt_at: datetime
    """When the prompt was written to its topic, by its producer's clock."""
    generated_at: datetime
    """When the last token of the group was received."""
    response_text: str
    """For people and rewards; training reads the token ids. Of a conversation the last answer."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Half the cost of what ``dataclass`` generates; samples are pickled for every reward."""
        return Sample, _values(self)

    @property
    def group(self) -> GroupId:
        """The group that the sample belongs to."""
        return GroupId(self.prompt_partition, self.prompt_offset)

    @property
    def rollout_id(self) -> RolloutId:
        """The name by which feedback refers to this sample."""
        return RolloutId(self.run, self.prompt_partition, self.prompt_offset, self.sample_index)


_COLUMNS: Final = tuple(column.name for column in fields(Sample))
_values: Final = attrgetter(*_COLUMNS)
_GROUPS: Final = TypeAdapter(list[tuple[int, int]], config=ConfigDict(strict=True))
_RATERS: Final = TypeAdapter(list[tuple[tuple[int, int], list[str]]])
_DETAIL_CHARACTERS: Final = 300
"""A detail quotes the offending value, which may be a string of megabytes."""


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt from one attempt, with the prompt that asked for them."""

    id: GroupId
    prompt: Prompt
    samples: tuple[Sample, ...]
    value: bytes = field(default=b"", repr=False)
    """The prompt record's value, for dead letters."""
    trace: TraceContext | None = field(default=None, repr=False, compare=False)
    """The span that those of the group go below; null where nothing is traced."""


_ATTEMPTS: Final = count(1)


def new_attempt_id() -> str:
    """A name that no other attempt has: the process's own, drawn at random, and a number."""
    return f"{_process_name(os.getpid())}-{next(_ATTEMPTS)}"


@cache
def _process_name(pid: int) -> str:  # noqa: ARG001 - a process that was forked is another one
    return uuid.uuid4().hex


def encode(
    samples: Sequence[Sample],
    raters: Mapping[GroupId, Sequence[str]] | None = None,
    traces: Mapping[GroupId, TraceContext] | None = None,
) -> tuple[bytes, dict[str, bytes]]:
    """Encodes whole groups.

    Args:
        samples: of the groups.
        raters: of each group that was rated, the pseudonyms of those who did (:func:`pseudonym`).
        traces: of each group that is traced, the span that later ones go below.

    Returns:
        The record's value, an Arrow IPC stream of one batch, and its headers.
    """
    columns = dict(zip(_COLUMNS, map(list, zip(*map(_values, samples), strict=True)), strict=True))
    columns["reward_parts"] = [list(parts.items()) for parts in columns["reward_parts"]]
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table)
    value = sink.getvalue().to_pybytes()
    headers = _headers(value, samples)
    if raters:
        headers["raters"] = json.dumps([[group, names] for group, names in raters.items()]).encode()
    if traces:
        headers[GROUPS_HEADER] = encode_groups(traces)
    return value, headers


def _headers(value: bytes, samples: Sequence[Sample]) -> dict[str, bytes]:
    groups = list(dict.fromkeys(sample.group for sample in samples))
    return {
        "schema": str(SCHEMA_VERSION).encode(),
        "fingerprint": FINGERPRINT.encode(),
        "rows": str(len(samples)).encode(),
        "groups": json.dumps(groups, separators=(",", ":")).encode(),
        "sha256": hashlib.sha256(value).hexdigest().encode(),
    }


def groups_named_in(headers: Mapping[str, bytes | None]) -> list[GroupId]:
    """The groups that the headers name, empty if they cannot be read: who is hit by a bad value."""
    try:
        named = _GROUPS.validate_json(headers.get("groups") or b"")
    except ValidationError:
        return []
    return [GroupId(partition, offset) for partition, offset in named]


def pseudonym(user: str) -> str:
    """What a user is called in the headers of trajectories: 16 hexadecimal digits."""
    return hashlib.sha256(user.encode()).hexdigest()[:16]


def raters_named_in(headers: Mapping[str, bytes | None]) -> dict[GroupId, frozenset[str]]:
    """Who rated which group; empty if nobody did or the header cannot be read."""
    try:
        named = _RATERS.validate_json(headers.get("raters") or b"[]")
    except ValidationError:
        return {}
    return {GroupId(*group): frozenset(names) for group, names in named}


def decode(value: bytes | None, headers: Mapping[str, bytes | None]) -> list[list[Sample]]:
    """Reads a record and distrusts every byte of it.

    In order: size, headers, sha256, schema, decoded size, Arrow's full validation, nulls, row count,
    lengths, domain of every field, whole groups. The sha256 finds accidents; the rest of the ladder
    holds without it, against a writer that is wrong or hostile. ``groups`` of the headers is not
    compared: it serves where the value cannot be read, and the rows are what counts where it can.

    Returns:
        The rows of each group, in the order of the record; 1 group or more.

    Raises:
        RecordError: ``too_large``, ``bad_headers``, ``old_schema``, ``bad_sha256``, ``bad_arrow`` or ``bad_row``.
    """
    return _whole_groups(_to_samples(_read_whole(value, headers)))


def decode_again(value: bytes) -> list[Sample]:
    """The rows of a value that :func:`decode` has read before, for a third of its cost: its bytes are trusted."""
    with pa.ipc.open_stream(value) as reader:
        return _to_samples(reader.read_all())


def decode_columns(value: bytes | None, headers: Mapping[str, bytes | None], names: Sequence[str]) -> pa.Table:
    """Reads some columns of a record, for a twentieth of what :func:`decode` costs.

    The ladder is that of :func:`decode` up to the row count: what these columns hold is not compared with others, nor
    with its domain.

    Args:
        value: the record's.
        headers: the record's.
        names: of the columns.

    Returns:
        The columns in this order, 1 row or more.

    Raises:
        RecordError: as :func:`decode`.
    """
    return _read_whole(value, headers).select(list(names))


def _read_whole(value: bytes | None, headers: Mapping[str, bytes | None]) -> pa.Table:
    if value is None:
        raise RecordError("bad_arrow", "the value is null, expected an Arrow IPC stream")
    if len(value) > MAX_TRAJECTORY_BYTES:
        raise RecordError("too_large", f"{len(value)} bytes, expected at most {MAX_TRAJECTORY_BYTES}")
    rows = _check_headers(value, headers)
    table = _read_table(value)
    if not table.num_rows or table.num_rows != rows:
        raise RecordError("bad_arrow", f"{table.num_rows} rows, expected the {rows} of the header, 1 or more")
    return table


def _check_headers(value: bytes, headers: Mapping[str, bytes | None]) -> int:
    schema, own, rows, digest = (headers.get(name) for name in ("schema", "fingerprint", "rows", "sha256"))
    if schema is None or own is None or rows is None or digest is None:
        raise RecordError("bad_headers", "expected the headers schema, fingerprint, rows and sha256, none of them null")
    if schema != str(SCHEMA_VERSION).encode() or own != FINGERPRINT.encode():
        given = f"version {schema[:40]!r} with fingerprint {own[:40]!r}"
        raise RecordError(
            "old_schema", f"{given}, this release reads {SCHEMA_VERSION} with {FINGERPRINT}; use the one that wrote it"
        )
    if hashlib.sha256(value).hexdigest().encode() != digest:
        raise RecordError("bad_sha256", "the value is not the one that was written")
    try:
        return int(rows)
    except ValueError as error:
        raise RecordError("bad_headers", f"rows is {rows[:40]!r}, expected a number") from error


def _read_table(value: bytes) -> pa.Table:
    try:
        batches = list(_read_batches(value))
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise RecordError("bad_arrow", str(error)[:_DETAIL_CHARACTERS]) from error
    return pa.Table.from_batches(batches, schema=SCHEMA)


def _read_batches(value: bytes) -> Iterator[pa.RecordBatch]:
    """Valid batches of our schema; nothing is decompressed before its size is known."""
    messages = read_messages(value)
    if not pa.ipc.read_schema(next(messages)).equals(SCHEMA):
        raise RecordError("old_schema", "the stream's schema is not the one that its header names")
    left = MAX_DECODED_BYTES
    for message in messages:
        left -= decoded_size_bytes(message)
        if left < 0:
            raise RecordError("too_large", f"decodes to more than {MAX_DECODED_BYTES} bytes")
        batch = pa.ipc.read_record_batch(message, SCHEMA)
        batch.validate(full=True)
        for column in SCHEMA:
            _refuse_nulls(column, batch.column(column.name))
        _refuse_unequal_lengths(batch)
        yield batch


def _refuse_nulls(column: pa.Field, values: pa.Array) -> None:
    """Arrow validates no nullability: a null where none may be reads as None."""
    if values.null_count and not column.nullable:
        raise RecordError("bad_row", f"a null in {column.name}, which has none")
    if pa.types.is_list(column.type):
        _refuse_nulls(column.type.value_field, values.flatten())
    elif pa.types.is_struct(column.type):
        for part, nested in zip(column.type, values.flatten(), strict=True):
            _refuse_nulls(part, nested)


def _refuse_unequal_lengths(batch: pa.RecordBatch) -> None:
    """Before lists become Python's: a mask of bits grows 64-fold then, and this bounds it by the token ids."""
    tokens = batch.column("response_token_ids").value_lengths()
    for name in ("response_logprobs", "loss_mask"):
        if not batch.column(name).value_lengths().equals(tokens):
            raise RecordError("bad_row", f"response_token_ids and {name} differ in length")


def _to_samples(table: pa.Table) -> list[Sample]:
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise RecordError("bad_row", str(error)[:_DETAIL_CHARACTERS]) from error
    return [_to_sample(row) for row in rows]


def _to_sample(row: dict[str, Any]) -> Sample:
    parts = row["reward_parts"]
    row["weight_version_spans"] = tuple(Span(**span) for span in row["weight_version_spans"])
    row["reward_parts"] = dict(parts)
    sample = Sample(**row)
    fault = "a part of the reward has two values" if len(sample.reward_parts) < len(parts) else find_fault(sample)
    if fault:
        raise RecordError("bad_row", f"{sample.group}/{sample.sample_index}: {fault}"[:_DETAIL_CHARACTERS])
    return sample


def find_fault(sample: Sample) -> str | None:
    """The first value of a row that is outside its domain, in words; None if all are inside."""
    tokens = len(sample.response_token_ids)
    if min(sample.prompt_partition, sample.prompt_offset) < 0 or not 0 <= sample.sample_index < MAX_GROUP_SIZE:
        return "a negative coordinate or a sample index out of range"
    if not sample.prompt_token_ids or not 1 <= tokens <= MAX_RESPONSE_TOKENS:
        return f"{len(sample.prompt_token_ids)} prompt and {tokens} response tokens, expected 1 or more"
    if sample.purpose not in PURPOSES:
        return f"purpose {sample.purpose!r}, expected one of {', '.join(PURPOSES)}"
    if len(sample.response_logprobs) != tokens or len(sample.loss_mask) != tokens:
        return "response_token_ids, response_logprobs and loss_mask differ in length"
    if min(sample.prompt_token_ids) < 0 or min(sample.response_token_ids) < 0:
        return "a negative token id"
    if not math.isfinite(sum(sample.response_logprobs)) or max(sample.response_logprobs) > 1e-3:
        return "a logprob that is positive or not finite"
    if sample.reward is not None and not math.isfinite(sample.reward):
        return f"reward {sample.reward}, expected a finite number or null"
    if not all(part is not None and math.isfinite(part) for part in sample.reward_parts.values()):
        return f"reward_parts {sample.reward_parts}, expected finite numbers"
    return _find_span_fault(sample, tokens)


def _find_span_fault(sample: Sample, tokens: int) -> str | None:
    spans = sample.weight_version_spans
    starts = [span.start for span in spans]
    versions = [span.version for span in spans]
    if not spans or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= tokens:
        return f"weight_version_spans start at {starts}, expected ascending from 0 below {tokens}"
    if min(versions) < 0 or (sample.weight_version_min, sample.weight_version_max) != (min(versions), max(versions)):
        return f"weight versions {versions} contradict weight_version_min and weight_version_max"
    return None


def _whole_groups(samples: Iterable[Sample]) -> list[list[Sample]]:
    groups: dict[GroupId, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    for group, members in groups.items():
        if sorted(member.sample_index for member in members) != list(range(len(members))):
            raise RecordError("bad_row", f"group {group}: sample indices are not 0 to {len(members) - 1}")
        if len({(member.run, member.attempt_id, tuple(member.prompt_token_ids)) for member in members}) != 1:
            raise RecordError("bad_row", f"group {group}: samples of more than one attempt or prompt")
    return list(groups.values())
