"""How full engines were and how fast they decoded, found from the log alone.

No record says when a request began. But the pipeline takes prompts in their order, each as soon as it is admitted and a
place is free, and a place is free when a group ends: so beginnings follow from the ends (:func:`beginnings`).
A sequence decodes from there on, for its part of the time of the group's longest one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from pipelines.plan.observe import Answered, Observed

Begun = Sequence[tuple[float, Answered]]
"""When each group went to its engine, in seconds since 1970, and the group."""
Edges = npt.NDArray[np.float64]

_PARTS = 400
"""Into which the run is divided to see how full engines were."""
_EDGE = 0.1
"""Share of the run left out at either end: engines fill up and run empty."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Of all engines, in the mean over the time in which they decoded."""

    step_s: float
    """Of a decoding step: sequences times seconds, over tokens."""
    sequences: float
    """That an engine decoded at once."""


def beginnings(observed: Observed, places: int, fetch_s: float = 0.0) -> Begun:
    """When each group was begun by its engine, and the group, in the order in which they were taken.

    Args:
        observed: of the run.
        places: groups that the pipeline has in flight at most.
        fetch_s: from an announcement until engines have the weights, which the prompts that it admits wait for.
    """
    in_flight: list[float] = []
    found = []
    for admitted_s, group in sorted(((observed.admitted_s(each), each) for each in observed.answered), key=_order):
        taken_s = max(admitted_s, group.prompt_s)
        while len(in_flight) >= places:
            taken_s = max(taken_s, heappop(in_flight))
        begin_s = max(taken_s, admitted_s + fetch_s)
        heappush(in_flight, group.end_s)
        found.append((min(begin_s, group.end_s), group))  # the clocks of several machines may differ
    return found


def _order(found: tuple[float, Answered]) -> tuple[float, int, int]:
    admitted_s, group = found
    return max(admitted_s, group.prompt_s), group.group.offset, group.group.partition


def measure_pace(begun: Begun, slots: int) -> Pace | None:
    """How fast engines decoded; null of a run that is too short to say.

    Args:
        begun: of :func:`beginnings`.
        slots: sequences that an engine computes at once; what is beyond waits and does not decode.
    """
    first_s = min(begin_s for begin_s, _ in begun)
    last_s = max(group.end_s for _, group in begun)
    if last_s <= first_s:
        return None
    edges_s = np.linspace(first_s, last_s, _PARTS + 1)
    width_s, inner = (last_s - first_s) / _PARTS, slice(int(_EDGE * _PARTS), int((1 - _EDGE) * _PARTS))
    sequence_s = decoding_s = tokens = 0.0
    for groups in _by_worker(begun).values():
        asked, made = _load(groups, edges_s)
        decoding = np.minimum(asked, slots)[inner]
        sequence_s += float(decoding.sum()) * width_s
        decoding_s += float(np.minimum(decoding, 1.0).sum()) * width_s
        tokens += float(made[inner].sum())
    if not tokens or not decoding_s:
        return None
    return Pace(step_s=sequence_s / tokens, sequences=sequence_s / decoding_s)


def _by_worker(begun: Begun) -> dict[str, list[tuple[float, Answered]]]:
    found: dict[str, list[tuple[float, Answered]]] = {}
    for begin_s, group in begun:
        found.setdefault(group.worker, []).append((begin_s, group))
    return found


def _load(groups: Begun, edges_s: Edges) -> tuple[Edges, Edges]:
    """Of each part of the time: sequences at one worker in the mean, and the tokens that were made."""
    last_part, width_s = len(edges_s) - 2, edges_s[1] - edges_s[0]
    asked, made = np.zeros(last_part + 1), np.zeros(last_part + 1)
    for begin_s, end_s, length in _sequences(groups):
        first, last = np.minimum(np.searchsorted(edges_s, (begin_s, end_s), side="right") - 1, last_part)
        parts = np.arange(first, last + 1)
        overlap_s = np.minimum(edges_s[parts + 1], end_s) - np.maximum(edges_s[parts], begin_s)
        asked[parts] += overlap_s / width_s
        made[parts] += length * overlap_s / (end_s - begin_s)
    return asked, made


def _sequences(groups: Begun) -> Iterator[tuple[float, float, int]]:
    """From when to when each sequence was computed, and its tokens."""
    for begin_s, group in groups:
        longest = max(group.lengths)
        for length in group.lengths:
            end_s = begin_s + (group.end_s - begin_s) * length / longest
            if end_s > begin_s:
                yield begin_s, end_s, length
