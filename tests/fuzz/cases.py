"""What every decoder owes every input, and the kinds of input: ``CASES[kind](draw)`` runs one case.

A case returns ``decoded`` or the reason of its refusal. A :class:`Finding` or any other exception is a
defect of the project.
"""

import math
from functools import partial
from types import SimpleNamespace

from pipelines.curriculum.history import results_in
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError, StateError
from schemas.identity import GroupId, RolloutId
from schemas.limits import MAX_OFFSET_METADATA_BYTES
from schemas.manifests import Manifest, sha256
from schemas.offsets import OffsetSet
from schemas.trajectories import decode, encode, find_fault, groups_named_in
from tests.fuzz import records, texts
from tests.support.decoders import DECODERS

TRAJECTORY_REASONS = {"too_large", "bad_headers", "old_schema", "bad_sha256", "bad_arrow", "bad_row"}
TEXT_REASONS = {"too_large", "not_json", "bad_record"}
MAX_GROWTH_KIB = 768 << 10
"""Most resident memory that a process of cases may gain, records for bombs included."""


class Finding(AssertionError):
    """A decoder did what it must not do."""


def owe(promise, words):
    """Raises a finding if a promise is not kept."""
    if not promise:
        raise Finding(words)


def run_record(damage, draw):
    """A trajectories record is whole valid groups, or refused for a documented reason, within the memory cap."""
    value, headers = damage(draw)
    named = groups_named_in(headers)
    owe(all(type(name) is GroupId for name in named), f"groups_named_in gives {named}")
    _read_results(value, headers)
    try:
        groups = decode(value, headers)
    except RecordError as error:
        return refusal(error, TRAJECTORY_REASONS)
    _check_groups(groups)
    return "decoded"


def _read_results(value, headers):
    """What reads some columns passes over what it cannot read, and gives finite rewards."""
    for result in results_in(SimpleNamespace(value=value, headers=list(headers.items()))):
        owe(all(map(math.isfinite, result.rewards)), f"a reward that is not finite: {result}")


def _check_groups(groups):
    owe(groups and all(groups), "no group, or one without samples")
    samples = [sample for group in groups for sample in group]
    for group in groups:
        owe({sample.sample_index for sample in group} == set(range(len(group))), "a group that is not whole")
        owe(len({(sample.group, sample.attempt_id, sample.run) for sample in group}) == 1, "a mixed group")
    for sample in samples:
        owe(find_fault(sample) is None, "a row that is not valid")
        owe(None not in (sample.run, sample.attempt_id, sample.prompt_at, sample.worker, *sample.loss_mask), "a null")
    again = [sample for group in decode(*encode(samples)) for sample in group]
    owe(_key(again) == _key(samples), "a record that means something else when it is written again")


def _key(samples):
    return [repr(sample) for sample in samples]


def refusal(error, reasons):
    """The reason of a refusal, which a dead letter can carry."""
    owe(error.reason in reasons, f"undocumented reason {error.reason!r}")
    owe(len(error.detail) < 2000, f"a detail of {len(error.detail)} characters")
    letter = DeadLetter.of("learn", error.reason, error.detail, ("fuzz.trajectories", 0, 0), b"")
    owe(DeadLetter.decode(letter.encode()).encode() == letter.encode(), "a dead letter that is not read back")
    return error.reason


def run_text(decoder, name, damage, draw):
    """A JSON record is read and means the same when it is written again, or is refused for a documented reason."""
    try:
        record = decoder(damage(draw, name))
    except RecordError as error:
        return refusal(error, TEXT_REASONS)
    owe(
        decoder(record.encode()).encode() == record.encode(),
        f"{record!r} means something else when it is written again",
    )
    return "decoded"


def run_offsets(draw):
    """Offset metadata is a set at or above the low-water mark, or a ``ValueError``."""
    low, text = texts.offsets(draw)
    try:
        decoded = OffsetSet.decode(low, text)
    except ValueError as error:
        owe(len(str(error)) < 2000, "an endless message")
        return "ValueError"
    owe(decoded.low == low and all(offset >= low for offset in decoded.beyond), "an offset below the low-water mark")
    kept = OffsetSet.decode(low, decoded.encode(MAX_OFFSET_METADATA_BYTES))
    owe(kept.beyond <= decoded.beyond, "an offset was invented")
    return "decoded"


def run_manifest(draw):
    """A manifest with the announced hash names files inside of its directory, or is a ``StateError``."""
    value = draw.choice((texts.nodes, texts.edited))(draw, "manifest")
    try:
        manifest = Manifest.decode(value, sha256(value))
    except StateError as error:
        owe(len(str(error)) < 4000, "an endless message")
        return "StateError"
    for entry in manifest.files:
        owe(entry.name and not {"", ".", ".."} & set(entry.name.split("/")), f"file name {entry.name!r}")
    again = manifest.encode()
    owe(Manifest.decode(again, sha256(again)).encode() == again, "it means something else when it is written again")
    return "decoded"


def run_rollout_id(draw):
    """A rollout id is read and written the same, or is a ``ValueError``."""
    text = draw.choice(("demo/0/38/3", "a/1/2/3", "/0/0/0", "demo/0/0/", f"d/{'9' * draw.randrange(1, 6000)}/0/0"))
    at = draw.randrange(len(text))
    text = text[:at] + draw.choice(("", "/", "\n", "٣", "-", "\ud800", ".", "0")) + text[at + draw.randrange(2) :]
    try:
        read = RolloutId.parse(text)
    except ValueError as error:
        owe(len(str(error)) < 2000, "an endless message")
        return "ValueError"
    owe(str(read) == text, f"{text!r} is another id when it is written")
    return "decoded"


def grown_kib(since_kib):
    """How much the largest resident size of this process has grown; ``getrusage`` begins with that of its parent."""
    with open("/proc/self/status", "rb") as status:
        text = status.read()
    return int(text[text.index(b"VmHWM:") + 6 :].split(None, 1)[0]) - since_kib


CASES = {
    **{f"trajectories: {kind}": partial(run_record, damage) for kind, damage in records.RECORD_DAMAGE.items()},
    **{f"{name}: nodes": partial(run_text, decoder, name, texts.nodes) for name, decoder in DECODERS.items()},
    **{f"{name}: bytes": partial(run_text, decoder, name, texts.edited) for name, decoder in DECODERS.items()},
    "offsets": run_offsets,
    "manifest": run_manifest,
    "rollout id": run_rollout_id,
}
