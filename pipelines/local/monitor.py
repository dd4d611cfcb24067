"""Everything that a run has done, read from its topics whole: for the summary and the audit.

topics ──► RunReader ──► Monitor ──► summary.json

What a run is doing at the moment is shown by ``pipelines.top``, which reads no more than it shows.
"""

from pipelines.log import RunLog, RunReader
from schemas.config import RunConfig
from schemas.ledger import StepEntry, surviving_steps
from schemas.trajectories import Sample


class Monitor:
    """Follows the topics of one run.

    Args:
        config: of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self._reader = RunReader(config.kafka, config.name, self._on_group)
        self.versions_taken_in_flight: set[int] = set()
        """Versions that took over in the middle of at least one answer."""
        self.response_tokens = 0
        """Of all groups in the trajectories topic."""

    @property
    def log(self) -> RunLog:
        """Everything read so far."""
        return self._reader.log

    @property
    def line(self) -> list[StepEntry]:
        """The steps of the surviving line."""
        return surviving_steps(self.log.ledger)

    def close(self) -> None:
        """Closes the connections."""
        self._reader.close()

    def advance(self) -> None:
        """Reads on."""
        self._reader.advance()

    def _on_group(self, samples: list[Sample]) -> None:
        self.response_tokens += sum(len(sample.response_token_ids) for sample in samples)
        for sample in samples:
            self.versions_taken_in_flight.update(span.version for span in sample.weight_version_spans[1:])
