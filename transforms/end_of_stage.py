"""What a stage that ends in Kafka needs on Prism."""

from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import GlobalWindows


class EndOfStage(beam.PTransform):  # type: ignore[misc]
    """A shuffle of nothing, for Prism's sake: it gives the stage before it an output.

    While a bundle of a stage without outputs is open, Prism 2.77 asks without a pause whether all outputs
    have come (``stage.Execute`` selects on a channel that was closed from the start), which takes a core.
    """

    def expand(self, nothing: PCollection[tuple[int, int]]) -> Any:
        """Wires."""
        each = Repeatedly(AfterCount(1))
        window = beam.WindowInto(GlobalWindows(), trigger=each, accumulation_mode=AccumulationMode.DISCARDING)
        return nothing | window | beam.GroupByKey()
