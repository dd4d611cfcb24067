"""Write: the records of a bundle and the offsets of their prompts go to Kafka in one transaction.

    PCollection[OutputRecord] ──► Write ──► the pools that they came from ──► (Kafka)

Readers with ``read_committed`` see each group exactly once, whatever dies.
"""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from schemas.config import RunConfig
from transforms.carried import Carried
from transforms.end_of_stage import EndOfStage
from transforms.generation.outcome import OutputRecord
from transforms.generation.pool import pool_of


def by_share(records: Iterable[OutputRecord], shares: int) -> dict[int, list[OutputRecord]]:
    """The records of each share of the prompts partitions."""
    sorted_records: dict[int, list[OutputRecord]] = {}
    for record in records:
        sorted_records.setdefault(record.groups[0].partition % shares, []).append(record)
    return sorted_records


class WriteFn(beam.DoFn):  # type: ignore[misc]
    """Collects a bundle's records and hands them to their pools when it ends, which commit them whole."""

    def __init__(self, config: RunConfig, carried: Carried) -> None:
        self._config, self._carried = config, carried

    def setup(self) -> None:
        """Finds the configuration by which the source of this process has its pools."""
        self._here = self._carried.here(self._config)

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._records: list[OutputRecord] = []

    def process(self, record: OutputRecord) -> None:
        """Keeps the record."""
        self._records.append(record)

    def finish_bundle(self) -> None:
        """Hands them over."""
        for share, records in by_share(self._records, self._here.rollout.shares).items():
            pool_of(self._here, share).hand_over(records)


class Write(beam.PTransform):  # type: ignore[misc]
    """Ends the pipeline."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, records: PCollection[OutputRecord]) -> Any:
        """Wires."""
        write = WriteFn(self._config, Carried.of(self._config))
        return records | beam.ParDo(write).with_output_types(tuple[int, int]) | "End" >> EndOfStage()
