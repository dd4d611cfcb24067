"""Whether an announced update may be merged: each check a reason, in the order of what they cost.

    record ─► known site ─► signature ─► sequence ─► base version, asked for ─► hashes of files ─► shapes ─► numbers

What passes is kept in the spool; what does not is left out with the reason, and is no error of anybody here.
"""

import errno
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from math import isfinite
from statistics import median
from typing import Final

from schemas.errors import RecordError
from schemas.federating import FederationConfig
from schemas.federation import LeftOutReason, LeftOutUpdate, SiteUpdate, weights_root
from trainers.federation import privacy, updates
from trainers.federation.away import is_away
from trainers.federation.layout import Layout, Row
from trainers.federation.state import State

_COMPARED: Final = 3
"""Norms, without which the one in the middle says nothing."""
_TRIES: Final = 3
"""For files that cannot be opened though the store answers: nobody else's update is looked at meanwhile."""
_PAUSE_S: Final = 1.0
_LASTING: Final = frozenset({
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
})  # fmt: skip
"""What no second look changes."""


class LeftOut(Exception):
    """An update that is not merged, and why."""

    def __init__(self, reason: LeftOutReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Candidate:
    """An update that may be merged."""

    update: SiteUpdate
    at: int
    """Offset of its record."""
    norm: float
    """As it came."""
    slot: int
    """Of the spool."""

    def left_out(self, reason: LeftOutReason) -> LeftOutUpdate:
        """What the log says if it is not merged after all."""
        return LeftOutUpdate(site=self.update.site, sequence=self.update.sequence, at=self.at, reason=reason,
                             norm=self.norm)  # fmt: skip


class Examiner:
    """Looks at announcements and at files. Keys are looked up once, when it is made."""

    def __init__(self, config: FederationConfig, layout: Layout) -> None:
        """Looks up the keys.

        Raises:
            ConfigError: one is not where the configuration says.
        """
        from fsspec.core import url_to_fs

        self._config, self._layout = config, layout
        self._files, self._root = url_to_fs(config.store)
        self._keys = {name: key for name in config.sites if (key := config.key_of(name))}

    def announced(self, value: bytes | None, state: State, here: Iterable[str]) -> SiteUpdate:
        """The update of a record, if its files are worth a look.

        Args:
            value: of the record.
            state: of the federation.
            here: sites whose update for the present merge has come.

        Raises:
            LeftOut: they are not.
            RecordError: it is no such record.
        """
        update = SiteUpdate.decode(value)
        self._check_sender(update)
        if update.sequence <= state.sequences.get(update.site, 0):
            raise LeftOut("duplicate", f"sequence {update.sequence} came before")
        if self._config.asynchronous:
            self._check_age(update, state)
            if self._config.privacy.noise_multiplier and update.site in here:
                raise LeftOut("duplicate", "noise is measured for one update of a site in a merge")
        else:
            _check_round(update, state)
            if update.site in here:
                raise LeftOut("duplicate", f"another one from version {update.base_version} came before")
        return update

    def _check_sender(self, update: SiteUpdate) -> None:
        if self._config.sites and update.site not in self._config.sites:
            raise LeftOut("unknown_site", "the configuration does not have it")
        key = self._keys.get(update.site)
        if key and not update.is_by(self._config.name, key):
            raise LeftOut("forged", "unsigned" if update.signature is None else "the signature is not the site's")

    def _check_age(self, update: SiteUpdate, state: State) -> None:
        staleness = state.staleness(update.base_version)
        if staleness is None or staleness > self._config.max_staleness:
            raise LeftOut("old_base", f"from version {update.base_version}, the present one is {state.version}")

    def numbers(self, update: SiteUpdate) -> tuple[Row, float]:
        """What an update says, and its norm.

        Raises:
            LeftOut: its files are not what was announced, cannot be opened, or hold what cannot be merged.
            Exception: the store does not answer, see :func:`trainers.federation.away.is_away`.
        """
        try:
            row = self._read(update)
        except RecordError as error:
            reason: LeftOutReason = "wrong_shape" if error.reason == "wrong_shape" else "bad_manifest"
            raise LeftOut(reason, error.detail) from error
        length = privacy.norm(row)
        if not isfinite(length):
            raise LeftOut("nonfinite", "NaN or infinite numbers")
        most = self._config.checks.max_norm
        if most is not None and length > most:
            raise LeftOut("too_large", f"norm {length:.4g}, checks.max_norm is {most:g}")
        return row, length

    def _read(self, update: SiteUpdate) -> Row:
        """As :func:`trainers.federation.updates.read`; files that alone cannot be opened are tried a few times."""
        for attempt in count(1):
            try:
                return updates.read(self._files, self._root, update, self._layout)
            except Exception as error:
                if not is_away(error) or not self._store_answers():
                    raise
                if attempt == _TRIES or getattr(error, "errno", None) in _LASTING:
                    raise LeftOut("bad_manifest", f"its files cannot be opened: {error}") from error
            time.sleep(_PAUSE_S)
        raise AssertionError("unreachable")

    def _store_answers(self) -> bool:
        """Whether it is the update's files alone that cannot be read: no site may keep the others waiting."""
        try:
            self._files.invalidate_cache()
            return bool(self._files.exists(weights_root(self._root)))
        except Exception as error:
            if not is_away(error):
                raise
            return False

    def outliers(self, candidates: Iterable[Candidate], state: State) -> set[int]:
        """Offsets of those whose norm is far beyond what is usual; see ``checks.max_times_median``.

        Where the one in the middle is zero nothing is usual, and nobody is left out. With noise nobody is either: whose
        update is merged would depend on what others sent, which clipping does not bound.
        """
        found, most = list(candidates), self._config.checks.max_times_median
        if self._config.privacy.noise_multiplier:
            return set()
        usual = list(state.norms.values()) if self._config.asynchronous else [each.norm for each in found]
        if most is None or len(usual) < _COMPARED:
            return set()
        limit = most * median(usual)
        return {each.at for each in found if each.norm > limit} if limit else set()

    def remove(self, site: str, sequence: int) -> None:
        """Removes the files of an update that the log is done with."""
        updates.remove(self._files, self._root, site, sequence)

    def sweep(self, sequences: Mapping[str, int]) -> None:
        """Removes the files of all updates up to these sequences, by site: the log is done with them."""
        updates.sweep(self._files, self._root, sequences)


def _check_round(update: SiteUpdate, state: State) -> None:
    order, last = state.open, state.last
    if update.base_version != state.version:
        was_asked = last is not None and update.base_version == last.base_version and update.site in last.sites
        told = f"from version {update.base_version}, the present one is {state.version}"
        raise LeftOut("late" if was_asked else "old_base", told)
    if order is None or update.site not in order.sites:
        raise LeftOut("not_selected", "the round does not ask it")
