"""Records of a federation: many sites, each with a run of its own, and one coordinator that merges what they learn.

    site ──► F.sites    who is there, with what machine          Site, repeated as a heartbeat
    site ──► F.updates  what it learned since a global version   SiteUpdate; the tensors lie in the federation's store
    coordinator ──► F.rounds   starts, orders and merges         CoordinatorStart, RoundOrder, Merge
    coordinator ──► F.weights  the global versions               WeightVersion, as a run's learner announces its own

The topics lie at a broker of the federation's own, and samples never travel there. No record carries a path: whoever
reads one builds it from its own configured root (:func:`update_path`, :func:`weights_root`, :func:`server_path`).
"""

import hashlib
import hmac
import json
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.limits import MAX_SITE_RECORD_BYTES
from schemas.records import Instant, Record, decode_one_of, now

SITE_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""A part of paths and of records: no dot, no slash."""
SiteName = Annotated[str, Field(pattern=SITE_NAME)]
Codec = Literal["full", "sparse", "int8", "sparse_int8"]
"""How the numbers of an update are written: see ``trainers/federation/codecs.py``."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Counter = Annotated[int, Field(ge=0, lt=1 << 63)]
_Number = Annotated[int, Field(ge=1, lt=1 << 63)]

LeftOutReason = Literal[
    "late", "old_base", "duplicate", "bad_manifest", "nonfinite", "wrong_shape", "too_large", "forged", "unknown_site",
    "not_selected", "silent",
]  # fmt: skip
"""Why an update is in no global version. ``late``: of the round before. ``old_base``: of an older version.
``duplicate``: announced before, or with a sequence that is not the site's next. ``bad_manifest``: files that are
missing, have other hashes than announced or cannot be read. ``nonfinite``: holds NaN or infinities. ``wrong_shape``:
other tensors than the model's. ``too_large``: a norm far beyond the others'. ``forged``: the signature is not the
site's. ``unknown_site``: the coordinator's configuration does not have it. ``not_selected``: not asked for in this
round. ``silent``: asked for, and nothing came; the only one without an update."""


class _Signed(Record):
    """A record that a site may sign with the key that it shares with the coordinator."""

    max_bytes: ClassVar[int | None] = MAX_SITE_RECORD_BYTES

    signature: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """HMAC-SHA256 over the federation's name, a line's end, and the record without this field as JSON with sorted keys
    and without spaces; null where the federation has no keys."""

    def signed(self, federation: str, key: str | None) -> Self:
        """The record with the site's signature; as it is without a key."""
        return self.model_copy(update={"signature": self._mac(federation, key)}) if key else self

    def is_by(self, federation: str, key: str) -> bool:
        """Whether whoever signed it had the key."""
        return self.signature is not None and hmac.compare_digest(self.signature, self._mac(federation, key))

    def _mac(self, federation: str, key: str) -> str:
        tree = self.model_dump(mode="json", by_alias=True, exclude={"signature"})
        message = f"{federation}\n{json.dumps(tree, sort_keys=True, separators=(',', ':'))}"
        return hmac.new(key.encode(), message.encode(), hashlib.sha256).hexdigest()


class Site(_Signed):
    """A site says that it is there and what it has, every few seconds; the newest record of a ``site`` holds.

    Example::

        {"schema": 1, "site": "north", "cores": 16, "gpu": "NVIDIA H200", "memory_bytes": 137438953472,
         "link_bytes_s": 12500000.0, "tokens_s": 8100.5, "samples": 40960, "base_version": 12, "signature": null,
         "at": "2026-01-31T12:00:00.000Z"}
    """

    site: SiteName
    """Its name; also the record's key."""
    cores: int = Field(ge=1, lt=1 << 31)
    """Processors that its learner may use."""
    gpu: str = Field(default="", max_length=200)
    """Name of the GPU that its learner has; empty for none."""
    memory_bytes: int = Field(ge=1, lt=1 << 63)
    """Of the machine, or of the GPU if it has one."""
    link_bytes_s: float | None = Field(default=None, gt=0)
    """To the store, in bytes a second; null where nobody said."""
    tokens_s: float | None = Field(default=None, gt=0)
    """Tokens trained a second, measured over its last steps; null before the first."""
    samples: _Counter = 0
    """Samples that it has trained on so far."""
    base_version: _Counter = 0
    """The global version that it trains from; 0 before the first."""
    at: Instant = Field(default_factory=now)


class SiteUpdate(_Signed):
    """What a site learned since a global version: new weights minus those, or the same of an adapter's tensors.

    ``(site, sequence)`` names an update for ever. The same one may be announced again, after a crash: it is merged at
    most once. Its files are at :func:`update_path`.

    Example::

        {"schema": 1, "site": "north", "sequence": 7, "round": 9, "base_version": 12, "samples": 640, "tokens": 81920,
         "steps": 10, "codec": "int8", "bytes": 134789213, "manifest_sha256": "ab…", "signature": null,
         "published_at": "2026-01-31T12:00:00.000Z"}
    """

    site: SiteName
    """Whose it is; also the record's key."""
    sequence: _Number
    """A counter of the site that never goes back, also across restarts."""
    round: _Number | None = None
    """The round that asked for it; null for an asynchronous federation."""
    base_version: _Number
    """The global version that training started from."""
    samples: _Counter
    """Samples that it was trained on."""
    tokens: _Counter
    """Tokens of those that had a loss."""
    steps: _Counter
    """Optimizer steps."""
    codec: Codec = "full"
    bytes: _Counter
    """Of its files, ``MANIFEST.json`` not counted."""
    manifest_sha256: Sha256
    """Of the bytes of the ``MANIFEST.json`` beside its files."""
    published_at: Instant = Field(default_factory=now)

    @property
    def name(self) -> tuple[str, int]:
        """What names it for ever."""
        return self.site, self.sequence


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Order(_Part):
    """What a site is asked to do in a round. Example: ``{"steps": 10, "groups_per_step": null}``."""

    steps: int = Field(ge=1)
    """Optimizer steps before it publishes its update."""
    groups_per_step: int | None = Field(default=None, ge=1)
    """Prompts of each of these steps; null for what the site has configured."""


class MergedUpdate(_Part):
    """An update that is part of a global version.

    Example: ``{"site": "north", "sequence": 7, "at": 31, "samples": 640, "weight": 0.25, "norm": 1.5,
    "staleness": 0}``.
    """

    site: SiteName
    sequence: _Number
    at: _Counter
    """Offset of its record in ``F.updates``."""
    samples: _Counter
    """As it says; 0 where noise is added."""
    weight: float
    """Its share; the shares of a merge add up to 1, or to less where staleness takes some away. Trimmed mean and median
    give every update the same."""
    norm: float = Field(ge=0)
    """Euclidean norm of its tensors together, as it came; 0 where noise is added."""
    staleness: _Counter = 0
    """Global versions between its base and the version that it was merged into."""


class LeftOutUpdate(_Part):
    """An update, or a site, that a global version was made without.

    Example: ``{"site": "south", "sequence": 3, "at": 32, "reason": "nonfinite", "norm": null}``.
    """

    site: str = Field(max_length=64)
    """Empty for a record of ``F.updates`` that cannot be read, which is a ``bad_manifest``."""
    sequence: _Number | None = None
    """Null for a site that was silent, and for a record that cannot be read."""
    at: _Counter | None = None
    """Offset in ``F.updates``; null for a site that was silent."""
    reason: LeftOutReason
    norm: float | None = Field(default=None, ge=0)
    """Euclidean norm of an update that is ``too_large`` beside others'; null for everything else."""


class CoordinatorStart(Record):
    """A coordinator started.

    Example: ``{"schema": 1, "kind": "start", "generation": 2, "version": 12, "strategy": "fedavg",
    "asynchronous": false, "at": "2026-01-31T12:00:00.000Z"}``.
    """

    kind: Literal["start"] = "start"
    generation: _Number
    """One per coordinator start."""
    version: _Number
    """The global version that it goes on from; the first start of a federation makes it."""
    strategy: str
    asynchronous: bool = False
    """Whether sites go on by themselves, without rounds."""
    at: Instant = Field(default_factory=now)


class RoundOrder(Record):
    """A round begins: these sites train from this version, and publish.

    A round that misses its quorum is followed by another from the same version: what was trained from it counts.

    Example::

        {"schema": 1, "kind": "round", "generation": 1, "round": 9, "base_version": 12,
         "sites": {"north": {"steps": 10, "groups_per_step": null}}, "again": [], "quorum": 1,
         "deadline_at": "2026-01-31T12:10:00.000Z", "at": "2026-01-31T12:00:00.000Z"}
    """

    kind: Literal["round"] = "round"
    generation: _Number
    round: _Number
    """A counter that never goes back."""
    base_version: _Number
    sites: dict[SiteName, Order] = Field(min_length=1)
    again: tuple[SiteName, ...] = ()
    """Those of them whose update from this version was left out since the order before: they send another one. Whoever
    has sent one and is not among them does nothing."""
    quorum: int = Field(ge=1)
    """Updates without which nothing is merged."""
    deadline_at: Instant
    """When it is merged without those that are missing."""
    at: Instant = Field(default_factory=now)


class Merge(Record):
    """A global version was made, in one transaction with its announcement.

    Example::

        {"schema": 1, "kind": "merge", "generation": 1, "round": 9, "base_version": 12, "version": 13,
         "strategy": "fedavg", "merged": [{"site": "north", "sequence": 7, "at": 31, "samples": 640, "weight": 1.0,
         "norm": 1.5, "staleness": 0}], "left_out": [{"site": "south", "sequence": null, "at": null,
         "reason": "silent", "norm": null}], "position": 33, "server_sha256": null, "metrics": {"bytes": 134789213.0,
         "seconds": 4.2}, "at": "2026-01-31T12:09:00.000Z"}
    """

    kind: Literal["merge"] = "merge"
    generation: _Number
    round: _Number | None = None
    """Null in an asynchronous federation."""
    base_version: _Number
    """The global version that the updates were added to."""
    version: _Number
    """The one that came of it."""
    strategy: str
    merged: tuple[MergedUpdate, ...] = ()
    left_out: tuple[LeftOutUpdate, ...] = ()
    position: _Counter
    """Next offset of ``F.updates`` to read: all before it are in this or an earlier merge."""
    server_sha256: Sha256 | None = None
    """Of the manifest of the server optimizer's state at :func:`server_path`; null where the strategy has none."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """``bytes`` that came, ``seconds`` since the round began, ``epsilon`` spent so far where noise is added."""
    at: Instant = Field(default_factory=now)


RoundsEntry = CoordinatorStart | RoundOrder | Merge
_ADAPTER: TypeAdapter[RoundsEntry] = TypeAdapter(Annotated[RoundsEntry, Field(discriminator="kind")])


def decode_rounds_entry(value: bytes) -> RoundsEntry:
    """Reads one record of ``F.rounds``.

    Raises:
        RecordError: ``bad_record``.
    """
    return decode_one_of(_ADAPTER, value)


def weights_root(store: str) -> str:
    """Below which the global versions lie, as those of a run below ``weights.root``."""
    return f"{store.rstrip('/')}/weights"


def update_path(store: str, site: str, sequence: int) -> str:
    """The directory of an update."""
    return f"{store.rstrip('/')}/updates/{site}/{sequence:08d}"


def server_path(store: str, version: int) -> str:
    """The directory of the server optimizer's state that belongs to a global version."""
    return f"{store.rstrip('/')}/server/{version:08d}"
