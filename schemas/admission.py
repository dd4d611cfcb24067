"""Records of ``{run}.admission``: written by the learner, read by the rollout pipeline and the audit."""

from typing import Annotated

from pydantic import Field

from schemas.records import Record


class AdmissionFrontier(Record):
    """How far the prompts may be generated; the newest record holds.

    Example: ``{"schema": 1, "version": 12, "generation": 1, "frontier": {"0": 40, "1": 40}}``.
    """

    version: int = Field(ge=0)
    """The learner's weight version when it admitted these prompts; the prompts that this record is
    the first to admit are answered by this version or a newer one."""
    generation: int = Field(ge=1)
    frontier: dict[int, Annotated[int, Field(ge=0)]]
    """For each prompts partition the first offset that may *not* be generated yet."""

    def admits(self, partition: int, offset: int) -> bool:
        """Whether the prompt may be generated."""
        return offset < self.frontier.get(partition, 0)
