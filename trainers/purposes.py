"""What a group of the trajectories topic is trained for: the purpose of its rows, and which ids may have it.

    id                     purpose                     rows         reward
    prompts partition      train, feedback             the group's  of each answer
    EXCHANGES + partition  feedback                    the group's  of each answer
    FEEDBACK + partition   correction                  1 or more    a difference, of each answer that changed
                           demonstration               1            a weight above 0

Everybody who may write to the topic can name any group, so this is checked and not assumed.
"""

from collections.abc import Collection, Sequence
from typing import Final

from schemas.identity import FEEDBACK, GroupId
from schemas.trajectories import Purpose, Sample

RATED: Final[tuple[Purpose, ...]] = ("train", "feedback")
"""Their reward is that of an answer, which can be compared with others; that of the others stands as it is."""


def purposes_of(group: GroupId) -> tuple[Purpose, ...]:
    """Those that a group of this id may have."""
    if group.is_prompt:
        return RATED
    return ("feedback",) if group.partition < FEEDBACK else ("correction", "demonstration")


def find_misfit(group: GroupId, purposes: Collection[str], rows: int) -> str | None:
    """Why a group cannot be what it says, in words; None if it can.

    Args:
        group: its id.
        purposes: of its rows.
        rows: how many it has.
    """
    allowed, given = purposes_of(group), sorted(set(purposes))
    if len(given) != 1 or given[0] not in allowed:
        return f"purpose {' and '.join(given)}, expected {' or '.join(allowed)} of every row"
    if given[0] == "demonstration" and rows != 1:
        return f"{rows} rows of purpose {given[0]}, expected 1"
    return None


def find_bad_weight(samples: Sequence[Sample]) -> str | None:
    """What is wrong with the weight of a demonstration, in words; None if nothing is.

    Below 0 it would make a text ever less likely, which has no end.
    """
    for sample in samples:
        if sample.purpose == "demonstration" and (sample.reward is None or sample.reward <= 0):
            return f"reward {sample.reward} of a demonstration, expected its weight, above 0"
    return None
