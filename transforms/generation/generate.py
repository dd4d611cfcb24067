"""Generate: prompts become groups of answers, or dead letters.

    (Kafka: prompts, admission) ──► Generate ──► PCollection[Outcome], in order of completion

The work is the pools'; this is how Beam sees it.
"""

import apache_beam as beam
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.pvalue import PBegin, PCollection

from schemas.config import RunConfig
from transforms.generation.outcome import Outcome
from transforms.generation.source import OutcomeSource


class Generate(beam.PTransform):  # type: ignore[misc]
    """Reads what the pools have finished. Everything up to the commit has to stay in one fused stage."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, start: PBegin) -> PCollection[Outcome]:
        """Wires."""
        rollout = self._config.rollout
        outcomes = start | ReadFromUnboundedSource(
            OutcomeSource(self._config),
            poll_interval=rollout.poll_interval_s,
            max_records_per_bundle=rollout.max_bundle_groups,
        )
        outcomes.element_type = Outcome
        return outcomes
