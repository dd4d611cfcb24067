"""The samples of a run as Parquet files, each with what became of it: a directory that Hugging Face's datasets loads.

    ledger, dead letters ──► Fates ───────────────┐
    prompts, exchanges ──► messages ──────────────┤
    trajectories ──► Arrow, verified ─────────────┴─► rows ──► DIR/data/train-00000.parquet …, README.md, MANIFEST.json
         └── once before: rewards ──► advantages

Only the trajectories that the ledger, read first, can know of are consistent with it, so what a live run wrote
afterwards has the fate ``waiting``. Everything is written beside DIR and then given its name: a directory that is there
is whole. Memory: the ledger, the advantages of trained samples, the messages of prompts, and one row group.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipelines.export import beside, require_free_place, seal
from pipelines.fates import NEEDED, Fates, Key, Place, StepsAgain
from pipelines.log import TopicReader, read_topic
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError, RunError
from schemas.exchanges import Exchange
from schemas.identity import EXCHANGES, GroupId
from schemas.ledger import decode_entry
from schemas.prompts import Message, Prompt
from schemas.trajectories import SCHEMA as TRAJECTORIES
from schemas.trajectories import decode_columns
from trainers.disk import disk_errors

ROW_GROUP_ROWS: Final = 4096
ROW_GROUP_BYTES: Final = 64 << 20
"""Of Arrow's memory: long answers make smaller row groups."""
FILE_ROWS: Final = 64 * ROW_GROUP_ROWS
CARD_NAME: Final = "README.md"
_DATA: Final = "data"
_MESSAGE: Final = pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)])
_PART: Final = pa.struct([pa.field("name", pa.string(), False), pa.field("value", pa.float32(), False)])
_KEPT: Final = tuple(column for column in TRAJECTORIES if column.name != "reward_parts")
"""Columns that stay as they are. Maps are not: several readers of Parquet do not know them."""

Messages = tuple[Message, ...]

OWN_COLUMNS: Final[Mapping[str, tuple[pa.DataType, str]]] = {
    "rollout_id": (pa.string(), "`{run}/{prompts partition}/{offset}/{sample index}`; feedback names samples so."),
    "messages": (pa.list_(_MESSAGE), "The prompt, where it was given as messages; else null."),
    "reward_parts": (pa.list_(_PART), "Named parts of the reward; may be empty."),
    "fate": (pa.string(), "`trained`, `dropped`, `refused` (its record is a dead letter), or `waiting`."),
    "fate_reason": (pa.string(), "Why it was dropped or refused; null otherwise."),
    "step": (pa.int64(), "The optimizer step that trained or dropped it, from 1; null if none has."),
    "step_version": (pa.int64(), "The weight version that this step produced; null if none has."),
    "advantage": (pa.float32(), "As that step had it; null if it did not train the sample, or used a value head."),
    "record_partition": (pa.int32(), "Where its record lies in the trajectories topic."),
    "record_offset": (pa.int64(), "The same: the offset."),
}
"""What an exported row has besides, or instead of, the columns of a trajectories record."""
SCHEMA: Final = pa.schema([*_KEPT, *(pa.field(name, kind) for name, (kind, _) in OWN_COLUMNS.items())])


class ExportedSamples(BaseModel):
    """What was written, and where."""

    directory: str
    run: str
    rows: int
    """Samples."""
    groups: int
    fates: dict[str, int]
    """Samples by what became of them."""
    steps: int
    """Of the surviving line, as far as it went."""
    files: int
    size_bytes: int
    unreadable: int
    """Records that no reader can decode: left out."""
    manifest_sha256: str


def export_samples(config: RunConfig, target: Path) -> ExportedSamples:
    """Writes the samples of a run to a directory.

    Args:
        config: of the run, which may be live; its log can be read.
        target: a directory that does not exist, or is empty.

    Raises:
        ConfigError: the directory holds something.
        RunError: the run has written no samples yet.
        BrokerError: its log cannot be read.
        DiskError: there is no room or no permission.
    """
    require_free_place(target)
    fates = _fates(config)
    ends = _ends(config)
    if not any(ends.values()):
        raise RunError(f"run {config.name!r} has written no samples yet: nothing is there to export")
    source = _Source(fates, _advantages(config, fates, ends), _messages(config))
    faults: Counter[str] = Counter()
    rows = (source.rows(table, at) for table, at in _records(config, ends, faults))
    with disk_errors("export", target), beside(target) as partial:
        with _Files(partial / _DATA) as files:
            for table in rows:
                files.write(table)
        facts: dict[str, Any] = {
            "run": config.name, "rows": files.fates.total(), "groups": files.groups, "fates": dict(files.fates),
            "steps": len(fates.steps), "unreadable": faults.total(),
        }  # fmt: skip
        (partial / CARD_NAME).write_text(card(config, facts))
        digest, sizes = seal(partial, {"kind": "samples", **facts})
    return ExportedSamples(
        directory=str(target), files=len(sizes), size_bytes=sum(sizes), manifest_sha256=digest, **facts
    )


def _fates(config: RunConfig) -> Fates:
    topics = config.topics
    entries = read_topic(config.kafka, topics.ledger, decode_entry)
    return Fates.of(entries, read_topic(config.kafka, topics.dead_letters, DeadLetter.decode), topics.trajectories)


def _ends(config: RunConfig) -> dict[int, int]:
    """The offset after the last record of each trajectories partition, as it is now."""
    with closing(TopicReader(config.kafka, config.topics.trajectories)) as reader:
        return reader.ends()


def _advantages(config: RunConfig, fates: Fates, ends: Mapping[int, int]) -> Mapping[Key, Sequence[float | None]]:
    again = StepsAgain(config, fates.steps)
    for table, at in _records(config, ends, Counter(), NEEDED):
        again.read(table, at)
    return again.found


def _records(
    config: RunConfig, ends: Mapping[int, int], faults: Counter[str], names: Sequence[str] = TRAJECTORIES.names
) -> Iterator[tuple[pa.Table, Place]]:
    """Some columns of each record of the trajectories topic below ``ends``, and its place."""
    with closing(TopicReader(config.kafka, config.topics.trajectories)) as reader:
        for record in reader.read_on():
            if record.offset >= ends.get(record.partition, 0):
                continue
            try:
                yield decode_columns(record.value, dict(record.headers), names), (record.partition, record.offset)
            except RecordError as error:
                faults[error.reason] += 1


def _messages(config: RunConfig) -> dict[GroupId, Messages]:
    """What was asked, where it was given as messages: by prompts, and by people and programs at a gateway."""
    topics, found = config.topics, dict[GroupId, Messages]()
    shared: dict[Messages, Messages] = {}
    sources: list[tuple[str, int, type[Prompt] | type[Exchange]]] = [(topics.prompts, 0, Prompt)]
    for topic, added, kind in (*sources, (topics.exchanges, EXCHANGES, Exchange)):
        with closing(TopicReader(config.kafka, topic)) as reader:
            for record in reader.read_on():
                with suppress(RecordError):
                    given = kind.decode(record.value).messages or ()
                    found[GroupId(added + record.partition, record.offset)] = shared.setdefault(given, given)
    return found


@dataclass(frozen=True)
class _Source:
    """From the table of a record to exported rows."""

    fates: Fates
    advantages: Mapping[Key, Sequence[float | None]]
    messages: Mapping[GroupId, Messages]

    def rows(self, table: pa.Table, at: Place) -> pa.Table:
        """Rows in the order of the record, as ``SCHEMA``."""
        names = ("prompt_partition", "prompt_offset", "sample_index")
        places = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
        own = [self._own(GroupId(*place), index, at) for *place, index in places]
        columns = {name: [row[name] for row in own] for name in own[0]}
        columns["rollout_id"] = [
            f"{run}/{p}/{o}/{i}" for run, (p, o, i) in zip(table.column("run").to_pylist(), places, strict=True)
        ]
        columns["reward_parts"] = [
            [{"name": name, "value": value} for name, value in parts]
            for parts in table.column("reward_parts").to_pylist()
        ]
        made = [pa.array(columns[name], kind) for name, (kind, _) in OWN_COLUMNS.items()]
        return pa.Table.from_arrays([*(table.column(column.name) for column in _KEPT), *made], schema=SCHEMA)

    def _own(self, group: GroupId, index: int, at: Place) -> dict[str, Any]:
        fate, advantages = self.fates.of_group(group, at), self.advantages.get((group, at))
        return {
            "messages": [message.model_dump() for message in self.messages.get(group, ())] or None,
            "fate": fate.ending,
            "fate_reason": fate.reason,
            "step": fate.step,
            "step_version": fate.version,
            "advantage": advantages[index] if advantages else None,
            "record_partition": at[0],
            "record_offset": at[1],
        }


class _Files:
    """Parquet files of a directory: zstd, row groups and files of bounded size.

    Attributes:
        groups: whose rows were written.
        fates: how many samples ended in which way.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows_of_file = self._files = 0
        self.groups = 0
        self.fates: Counter[str] = Counter()
        directory.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._close()

    def write(self, rows: pa.Table) -> None:
        """Takes the rows of a record."""
        self.fates.update(rows.column("fate").to_pylist())
        self.groups += rows.column("sample_index").to_pylist().count(0)
        self._waiting.append(rows)
        waiting = self._waiting
        if sum(map(len, waiting)) >= ROW_GROUP_ROWS or sum(each.nbytes for each in waiting) >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting = []
        if self._rows_of_file + len(table) > FILE_ROWS:
            self._close()
        if self._writer is None:
            path = self._directory / f"train-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
            self._files += 1
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._rows_of_file += len(table)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows_of_file = None, 0


def card(config: RunConfig, facts: Mapping[str, Any]) -> str:
    """The dataset card: what Hugging Face's datasets reads, and what a person wants to know.

    Args:
        config: of the run.
        facts: its name and how much was written.
    """
    fates = ", ".join(f"{number:,} {fate}" for fate, number in sorted(facts["fates"].items()))
    own = "\n".join(f"| `{name}` | `{kind}` | {told} |" for name, (kind, told) in OWN_COLUMNS.items())
    kept = "\n".join(f"| `{column.name}` | `{column.type}` |" for column in _KEPT)
    return _CARD.format(
        run=config.name, model=Path(config.model.path).name or "unknown", objective=config.learner.objective.name,
        staleness=config.learner.max_staleness, own=own, kept=kept, told=fates, **{
            name: f"{facts[name]:,}" for name in ("rows", "groups", "steps")
        },
    )  # fmt: skip


_CARD: Final = """---
pretty_name: Rollouts of the run {run}
tags:
- reinforcement-learning
- rollouts
- asyncflow
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# Rollouts of the run {run}

{rows} answers in {groups} groups, sampled while a model was trained by reinforcement learning with
AsyncFlow, each with its reward and what became of it: {told}, in {steps} optimizer
steps. Model at the start: `{model}`. Objective: `{objective}`, at most {staleness} weight versions behind.

A group is all answers to one prompt. Every token has the logprob under the distribution that it was drawn from, and the
weight version that produced it. Tokens are those of the model's own tokenizer. People may have written the prompts, and
what they wrote is here as they wrote it: look before you publish.

    from datasets import load_dataset
    rows = load_dataset("parquet", data_files="data/*.parquet", split="train")

| column | type | meaning |
| --- | --- | --- |
{own}

The others are those of the run's records (`schemas/trajectories.py`):

| column | type |
| --- | --- |
{kept}

`MANIFEST.json` has the sha256 of every file.
"""
