"""What becomes of a prompt, and what is written about it."""

from dataclasses import dataclass

from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.trajectories import Group

Outcome = Group | DeadLetter
"""A group of answers, or a dead letter that says why there is none."""


def group_of(outcome: Outcome) -> GroupId:
    """The place of the prompt."""
    return outcome.id if isinstance(outcome, Group) else outcome.group


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """A Kafka record that is committed together with the offsets of the prompts that it finishes."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    groups: tuple[GroupId, ...]
    """The prompts that are finished once this record is committed; one or more, all of one share."""
