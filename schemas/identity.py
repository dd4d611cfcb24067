"""Names of groups and samples. They come from the log alone: never a time, a worker or an attempt."""

import re
from typing import Final, NamedTuple, Self

EXCHANGES: Final = 1 << 20
"""Added to the partition of an exchange's record to name its group: a chat was never a record of the prompts topic."""
FEEDBACK: Final = 1 << 21
"""Added to the partition of a feedback record to name what it contributes by itself: a correction or demonstration."""

_NUMBER = "(0|[1-9][0-9]{0,18})"
"""One spelling a number, in 64 bits: an id that could be written in two ways would not be found."""
_ROLLOUT = re.compile(rf"(?P<run>[A-Za-z0-9._-]+)/(?P<partition>{_NUMBER})/(?P<offset>{_NUMBER})/(?P<index>{_NUMBER})")


class GroupId(NamedTuple):
    """A group is the place of its prompt in the prompts topic, of its exchange, or of the feedback that caused it.

    Example: ``GroupId(partition=0, offset=38)``, as a record key ``b"0/38"``.
    """

    partition: int
    """Of the prompts topic; from ``EXCHANGES`` on that of exchanges, from ``FEEDBACK`` on that of feedback."""
    offset: int

    @property
    def is_prompt(self) -> bool:
        """Whether it was admitted: a record of the prompts topic."""
        return self.partition < EXCHANGES

    def key(self) -> bytes:
        """The key of Kafka records about this group."""
        return f"{self.partition}/{self.offset}".encode()

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


class RolloutId(NamedTuple):
    """One sample of one group of one run. Example: ``demo/0/38/3``."""

    run: str
    partition: int
    offset: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``{run}/{prompts partition}/{offset}/{sample index}``.

        Raises:
            ValueError: the text has another form.
        """
        match = _ROLLOUT.fullmatch(text)
        if match is None:
            raise ValueError(f"rollout id {text[:80]!r}: expected RUN/PARTITION/OFFSET/SAMPLE, such as demo/0/38/3")
        return cls(match["run"], int(match["partition"]), int(match["offset"]), int(match["index"]))

    @property
    def group(self) -> GroupId:
        """The group that the sample belongs to."""
        return GroupId(self.partition, self.offset)

    def __str__(self) -> str:
        return f"{self.run}/{self.partition}/{self.offset}/{self.index}"
