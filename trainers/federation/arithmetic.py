"""The arithmetic of a merge: some numbers of all updates at a time, in the memory that there is.

    slots of the spool ──some numbers of each──► clipped, taken to the present version, noise ──► strategy ──► added

Shape suffixes: S updates, P all numbers of the model, N some of them.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.errors import StateError
from trainers.federation.layout import Row
from trainers.federation.spool import Spool
from trainers.federation.strategies import Numbers, Strategy

_NUMBER_BYTES: Final = 8
_COPIES: Final = 3
"""Of the chunk, that a strategy makes: sorted ones, products."""


@dataclass(frozen=True, slots=True)
class Part:
    """An update as it goes into a merge."""

    slot: int
    """Of the spool."""
    share: float
    factor: float = 1.0
    """What its numbers are multiplied by: below 1 if it was clipped."""
    base: int | None = None
    """Slot of the version that it started from, where the strategy mixes; null for the present one."""


def combine(  # noqa: PLR0913, PLR0917 - what a merge is made of
    strategy: Strategy, parts: Sequence[Part], spool: Spool, present_P: Row, state: dict[str, Row], chunk_bytes: int
) -> tuple[Row, dict[str, Row]]:
    """The next global version and the server's next state; what is given stays as it is.

    Args:
        strategy: with its arguments.
        parts: one or more, noise among them.
        spool: in which they lie.
        present_P: the version that is added to.
        state: of the strategy, each of length P.
        chunk_bytes: memory to be used beside the results.

    Raises:
        StateError: the strategy returned what is not finite.
    """
    next_P, after = np.empty_like(present_P), {name: np.empty_like(present_P) for name in strategy.state}
    shares_S = np.array([part.share for part in parts], dtype=np.float64)
    for place in _places(present_P.size, len(parts), chunk_bytes):
        updates_SN = _read(parts, spool, present_P[place], place)
        kept = {name: state[name][place].astype(np.float64) for name in strategy.state}
        step_N = strategy(updates_SN, shares_S, kept)
        with np.errstate(over="ignore"):  # told below
            next_P[place] = present_P[place] + step_N
        for name, numbers_N in kept.items():
            after[name][place] = numbers_N
        if not np.isfinite(next_P[place]).all():
            raise StateError(
                f"strategy {strategy.name} made numbers that are not finite of updates that are; nothing is published; "
                "lower its learning rate, or set checks.max_norm"
            )
    return next_P, after


def _places(size: int, parts: int, chunk_bytes: int) -> Iterator[slice]:
    length = max(1, chunk_bytes // (parts * _NUMBER_BYTES * _COPIES))
    return (slice(begin, min(size, begin + length)) for begin in range(0, size, length))


def _read(parts: Sequence[Part], spool: Spool, present_N: Row, place: slice) -> Numbers:
    updates_SN = np.empty((len(parts), present_N.size), dtype=np.float64)
    row_N = np.empty(present_N.size, dtype=np.float32)
    for number, part in enumerate(parts):
        spool.get(part.slot, place, row_N)
        updates_SN[number] = row_N
        updates_SN[number] *= part.factor
        if part.base is not None:
            spool.get(part.base, place, row_N)
            updates_SN[number] += row_N.astype(np.float64) - present_N
    return updates_SN
