"""Generate: prompts become groups of answers, or dead letters.

    (Kafka: prompts, admission) ──► Generate ──► PCollection[Outcome], in order of completion

The work is the pools'; this is how Beam sees it.
"""

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection

from schemas.config import RunConfig
from transforms.carried import Carried
from transforms.generation.outcome import Outcome
from transforms.generation.source import Batch, BatchSource, ReadFn


class Generate(beam.PTransform):  # type: ignore[misc]
    """Reads what the pools have finished. Everything up to the commit has to stay in one fused stage."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, start: PBegin) -> PCollection[Outcome]:
        """Wires."""
        carried = Carried.of(self._config)
        sources = [BatchSource(self._config, share, carried) for share in range(self._config.rollout.shares)]
        return (
            start
            | "Shares" >> beam.Create(sources, reshuffle=False)
            | "Read" >> beam.ParDo(ReadFn(self._config.rollout.poll_interval_s)).with_output_types(Batch)
            | "Unbatch" >> beam.FlatMap(iter).with_input_types(Batch).with_output_types(Outcome)
        )
