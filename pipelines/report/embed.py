"""Samples and lineage as the page carries them: columns of JSON, deflated, in base64, within a budget of bytes.

    SampleBook, Lineage ──► tree() ──► JSON ──► gzip ──► base64 ──► page ──► DecompressionStream ──► report.js

The answers are cut shorter until everything fits: the metadata of a sample is never left out.
"""

import base64
import gzip
import json
from datetime import datetime
from typing import Any

from pipelines.report.lineage import Lineage, StepFacts
from pipelines.report.samples import KeptGroup, KeptSample, SampleBook
from schemas.weights import WeightVersion

_LEVEL = 6
_LEAST_CHARACTERS = 16
_SHA_CHARACTERS = 16
_SPARE = 0.95
"""A cut of this share of what would fit: how well texts compress depends on their length."""


def packed(value: bytes) -> str:
    """Bytes as the page carries them; equal bytes give equal text."""
    return base64.b64encode(gzip.compress(value, _LEVEL, mtime=0)).decode()


def embed(book: SampleBook, lineage: Lineage, budget_bytes: int) -> tuple[str, int]:
    """Samples and lineage within a budget.

    Returns:
        What the page carries, at most ``budget_bytes`` long unless that is too little for the shortest answers, and
        the characters at which answers were cut.
    """
    cut = book.cut
    while True:
        text = packed(json.dumps(tree(book, lineage, cut), separators=(",", ":"), ensure_ascii=False).encode())
        if len(text) <= budget_bytes or cut <= _LEAST_CHARACTERS:
            return text, cut
        longest = max((len(sample.answer) for group in book for sample in group.samples), default=0)
        cut = max(_LEAST_CHARACTERS, min(cut // 2, int(min(cut, longest) * budget_bytes / len(text) * _SPARE)))


def tree(book: SampleBook, lineage: Lineage, cut: int) -> dict[str, Any]:
    """What ``report.js`` reads; columns of the same section have the same length.

    A word that occurs often is an index into ``words``; instants are milliseconds since 1970.
    """
    words: dict[str, int] = {}
    groups, prompts = list(book), dict[str, int]()
    columns = [_group(group, lineage, words, prompts) for group in groups]
    samples = [_sample(sample, words, cut) for group in groups for sample in group.samples]
    return {
        "groups": _transposed(_GROUP, columns),
        "samples": _transposed(_SAMPLE, samples),
        "steps": _transposed(_STEP, [_step(step) for step in lineage.steps]),
        "versions": _transposed(_VERSION, [_version(version) for version in lineage.weights.values()]),
        "prompts": list(prompts),
        "words": list(words),
        "cut": cut,
        "seen": book.seen,
        "stride": book.stride,
    }


_GROUP = ("partition", "offset", "atPartition", "atOffset", "attempt", "prompt", "promptId", "task", "purpose",
          "worker", "promptAt", "generatedAt", "fate", "step", "before", "size")  # fmt: skip
_SAMPLE = ("reward", "error", "tokens", "characters", "finish", "spans", "answer")
_STEP = ("generation", "step", "version", "at", "reward", "survives", "checkpointStep", "checkpointSha")
_VERSION = ("version", "step", "generation", "at", "sha")


def _transposed(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}


def _group(group: KeptGroup, lineage: Lineage, words: dict[str, int], prompts: dict[str, int]) -> tuple[Any, ...]:
    fate, before = lineage.of(group.group, group.at)
    return (
        *group.group,
        *group.at,
        group.attempt,
        prompts.setdefault(group.prompt, len(prompts)),
        group.prompt_id,
        *(words.setdefault(word, len(words)) for word in (group.task, group.purpose, group.worker)),
        _ms(group.prompt_at),
        _ms(group.generated_at),
        words.setdefault(fate.word, len(words)),
        fate.step,
        [each.step for each in before] or 0,
        len(group.samples),
    )


def _sample(sample: KeptSample, words: dict[str, int], cut: int) -> tuple[Any, ...]:
    return (
        None if sample.reward is None else float(f"{sample.reward:.5g}"),
        None if sample.error is None else words.setdefault(sample.error, len(words)),
        sample.tokens,
        sample.characters,
        words.setdefault(sample.finish, len(words)),
        _spans(sample),
        _whole(sample.answer[:cut]),
    )


def _spans(sample: KeptSample) -> Any:
    """The version alone where there is only one, else versions and characters in turn."""
    return sample.spans[0][0] if len(sample.spans) == 1 else [part for span in sample.spans for part in span]


def _whole(text: str) -> str:
    """Without halves of characters that UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _step(step: StepFacts) -> tuple[Any, ...]:
    entry, saved = step.entry, step.checkpoint
    reward = entry.metrics.get("reward_mean")
    told = (None, None) if saved is None else (saved.step, saved.manifest_sha256[:_SHA_CHARACTERS])
    place = (entry.generation, entry.step, entry.version, _ms(entry.at))
    return (*place, None if reward is None else round(reward, 4), int(step.survives), *told)


def _version(version: WeightVersion) -> tuple[Any, ...]:
    sha = version.manifest_sha256[:_SHA_CHARACTERS]
    return version.version, version.step, version.generation, _ms(version.published_at), sha


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
