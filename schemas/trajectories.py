"""Records of ``{run}.trajectories`` and ``{run}.pending``: Arrow IPC streams of whole groups.

Written by the rollout pipeline (and the feedback pipeline), read by the learner, the audit and
anyone. One row is one sample; all rows of a group are in one record. The Kafka headers carry what
is needed to distrust the bytes: the schema's version and fingerprint, the number of rows, the
groups and the sha256 of the value.
"""

import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, NamedTuple

import pyarrow as pa

from schemas.errors import RecordError
from schemas.identity import GroupId, RolloutId
from schemas.limits import MAX_DECODED_BYTES, MAX_GROUP_SIZE, MAX_RESPONSE_TOKENS, MAX_TRAJECTORY_BYTES
from schemas.prompts import Prompt

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
    prompt_token_ids: Sequence[int]
    """Length P."""
    response_token_ids: Sequence[int]
    """Length T, the end-of-sequence token included."""
    response_logprobs: Sequence[float]
    """Length T: natural logarithms under the distribution that was sampled from (temperature applied)."""
    loss_mask: Sequence[bool]
    """Length T: False for tokens that the model did not choose (tools, users)."""
    weight_version_spans: Sequence[Span]
    """Length 1 or more, starts ascending from 0."""
    weight_version_min: int
    weight_version_max: int
    reward: float | None
    """Null if it could not be computed or has not come yet."""
    reward_parts: dict[str, float]
    """Named parts that the reward was made of; may be empty."""
    reward_error: str | None
    """Why the reward is null; null if it is not, or is still awaited."""
    finish_reason: str
    """``stop``, ``length`` or ``abort``."""
    worker: str
    """The address of the engine that answered."""
    prompt_at: datetime
    """When the prompt was written to its topic, by Kafka's clock."""
    generated_at: datetime
    """When the last token of the group was received."""
    response_text: str
    """For people; training reads the token ids."""

    @property
    def group(self) -> GroupId:
        """The group that the sample belongs to."""
        return GroupId(self.prompt_partition, self.prompt_offset)

    @property
    def rollout_id(self) -> RolloutId:
        """The name by which feedback refers to this sample."""
        return RolloutId(self.run, self.prompt_partition, self.prompt_offset, self.sample_index)


_COLUMNS: Final = tuple(column.name for column in fields(Sample))


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt from one attempt, with the prompt that asked for them."""

    id: GroupId
    prompt: Prompt
    samples: tuple[Sample, ...]
    value: bytes = field(default=b"", repr=False)
    """The prompt record's value, for dead letters."""


def new_attempt_id() -> str:
    """A name that no other attempt has."""
    return uuid.uuid4().hex


def encode(samples: Sequence[Sample]) -> tuple[bytes, dict[str, bytes]]:
    """Encodes whole groups.

    Returns:
        The record's value, an Arrow IPC stream of one batch, and its headers.
    """
    columns = {name: [getattr(sample, name) for sample in samples] for name in _COLUMNS}
    columns["weight_version_spans"] = [
        [{"version": span.version, "start": span.start} for span in spans] for spans in columns["weight_version_spans"]
    ]
    columns["reward_parts"] = [list(parts.items()) for parts in columns["reward_parts"]]
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table)
    value = sink.getvalue().to_pybytes()
    return value, _headers(value, samples)


def _headers(value: bytes, samples: Sequence[Sample]) -> dict[str, bytes]:
    groups = list(dict.fromkeys(sample.group for sample in samples))
    return {
        "schema": str(SCHEMA_VERSION).encode(),
        "fingerprint": FINGERPRINT.encode(),
        "rows": str(len(samples)).encode(),
        "groups": json.dumps(groups, separators=(",", ":")).encode(),
        "sha256": hashlib.sha256(value).hexdigest().encode(),
    }


def groups_named_in(headers: dict[str, bytes]) -> list[GroupId]:
    """The groups that the headers name, empty if they cannot be read: who is hit by a bad value."""
    try:
        return [GroupId(int(partition), int(offset)) for partition, offset in json.loads(headers["groups"])]
    except (KeyError, ValueError, TypeError):
        return []


def decode(value: bytes | None, headers: dict[str, bytes]) -> list[list[Sample]]:
    """Reads a record and distrusts every byte of it.

    In order: size, headers, sha256, schema fingerprint, decoded size, Arrow's full validation, row
    count, domain of every field, whole groups.

    Returns:
        The rows of each group, in the order of the record.

    Raises:
        RecordError: ``too_large``, ``bad_headers``, ``old_schema``, ``bad_sha256``, ``bad_arrow`` or ``bad_row``.
    """
    if value is None:
        raise RecordError("bad_arrow", "the value is null, expected an Arrow IPC stream")
    if len(value) > MAX_TRAJECTORY_BYTES:
        raise RecordError("too_large", f"{len(value)} bytes, expected at most {MAX_TRAJECTORY_BYTES}")
    rows = _check_headers(value, headers)
    table = _read_table(value)
    if table.num_rows != rows:
        raise RecordError("bad_arrow", f"{table.num_rows} rows, expected the {rows} of the header")
    return _whole_groups(_to_samples(table))


def _check_headers(value: bytes, headers: dict[str, bytes]) -> int:
    missing = [name for name in ("schema", "fingerprint", "rows", "sha256") if name not in headers]
    if missing:
        raise RecordError("bad_headers", f"headers {missing} are missing")
    if headers["schema"] != str(SCHEMA_VERSION).encode() or headers["fingerprint"] != FINGERPRINT.encode():
        given = f"version {headers['schema']!r} with fingerprint {headers['fingerprint']!r}"
        raise RecordError("old_schema", f"{given}, this program reads version {SCHEMA_VERSION} with {FINGERPRINT}")
    if hashlib.sha256(value).hexdigest().encode() != headers["sha256"]:
        raise RecordError("bad_sha256", "the value is not the one that was written")
    try:
        return int(headers["rows"])
    except ValueError as error:
        raise RecordError("bad_headers", f"rows is {headers['rows']!r}, expected a number") from error


def _read_table(value: bytes) -> pa.Table:
    batches, taken = [], 0
    try:
        reader = pa.ipc.open_stream(pa.py_buffer(value))
        if fingerprint(reader.schema) != FINGERPRINT:
            raise RecordError("old_schema", "the stream's schema is not the one that its header names")
        for batch in reader:
            taken += batch.get_total_buffer_size()
            if taken > MAX_DECODED_BYTES:
                raise RecordError("too_large", f"decodes to more than {MAX_DECODED_BYTES} bytes")
            batch.validate(full=True)
            batches.append(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecordError("bad_arrow", str(error)[:200]) from error
    return pa.Table.from_batches(batches, schema=SCHEMA)


def _to_samples(table: pa.Table) -> list[Sample]:
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, ValueError, UnicodeDecodeError, OverflowError) as error:
        raise RecordError("bad_arrow", str(error)[:200]) from error
    samples = []
    for row in rows:
        row["weight_version_spans"] = tuple(Span(**span) for span in row["weight_version_spans"])
        row["reward_parts"] = dict(row["reward_parts"])
        sample = Sample(**row)
        fault = find_fault(sample)
        if fault:
            raise RecordError("bad_row", f"{sample.rollout_id}: {fault}")
        samples.append(sample)
    return samples


def find_fault(sample: Sample) -> str | None:
    """The first value of a row that is outside its domain, in words; None if all are inside."""
    tokens = len(sample.response_token_ids)
    if min(sample.prompt_partition, sample.prompt_offset) < 0 or not 0 <= sample.sample_index < MAX_GROUP_SIZE:
        return "a negative coordinate or a sample index out of range"
    if not sample.prompt_token_ids or not 1 <= tokens <= MAX_RESPONSE_TOKENS:
        return f"{len(sample.prompt_token_ids)} prompt and {tokens} response tokens, expected 1 or more"
    if len(sample.response_logprobs) != tokens or len(sample.loss_mask) != tokens:
        return "response_token_ids, response_logprobs and loss_mask differ in length"
    if min(sample.prompt_token_ids) < 0 or min(sample.response_token_ids) < 0:
        return "a negative token id"
    if not all(math.isfinite(logprob) and logprob <= 1e-3 for logprob in sample.response_logprobs):
        return "a logprob that is positive or not finite"
    if sample.reward is not None and not math.isfinite(sample.reward):
        return f"reward {sample.reward}, expected a finite number or null"
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
        if len({member.attempt_id for member in members}) != 1:
            raise RecordError("bad_row", f"group {group}: samples of more than one attempt")
    return list(groups.values())
