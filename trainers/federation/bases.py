"""Versions that updates may have started from, for a strategy that takes them to the present one (FedAsync)."""

from collections.abc import Mapping

from schemas.errors import StateError
from schemas.federation import SiteUpdate
from schemas.weights import WeightVersion
from trainers.federation.examine import LeftOut
from trainers.federation.layout import Row
from trainers.federation.spool import Spool
from trainers.federation.state import State
from trainers.federation.versions import Versions


class Bases:
    """Their numbers in the spool: read from the store when an update needs one, kept as long as one may."""

    def __init__(
        self, versions: Versions, announced: Mapping[int, WeightVersion], spool: Spool, *, wanted: bool
    ) -> None:
        """Reads nothing yet.

        Args:
            versions: in the store.
            announced: those of late, by number.
            spool: for their numbers.
            wanted: whether the strategy needs any.
        """
        self._versions, self._spool, self._wanted = versions, spool, wanted
        self._announced = dict(announced)
        self._slots: dict[int, int] = {}
        self._present = 0

    def require(self, update: SiteUpdate) -> None:
        """Has the base of an update at hand.

        Raises:
            LeftOut: ``old_base``: the store does not have it any more.
        """
        base = update.base_version
        if not self._wanted or base in (self._present, *self._slots):
            return
        try:
            _, row = self._versions.read(self._announced[base])
        except (StateError, KeyError) as error:
            raise LeftOut("old_base", f"version {base} is not in the store any more: {error}") from error
        self._slots[base] = self._spool.put(row)

    def slot(self, update: SiteUpdate) -> int | None:
        """Where an update's base lies; null if it is the present version, or if nobody needs it."""
        return self._slots.get(update.base_version) if self._wanted else None

    def go_on(self, announced: WeightVersion, before: Row, state: State) -> None:
        """There is a new version.

        Args:
            announced: the new one.
            before: numbers of the one before.
            state: after the merge.
        """
        if not self._wanted:
            return
        if self._present and self._present not in self._slots:
            self._slots[self._present] = self._spool.put(before)
        self._present = announced.version
        self._announced[announced.version] = announced
        for version in [each for each in self._slots if each not in state.versions]:
            self._spool.free(self._slots.pop(version))
            self._announced.pop(version, None)

    def begin(self, version: int) -> None:
        """Says which version is the present one at the start."""
        self._present = version
