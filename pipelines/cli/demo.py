"""``asyncflow demo``."""

from collections.abc import Sequence

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import parse
from pipelines.local.demo_options import DemoOptions

_DESCRIPTION = """Trains SmolLM2-135M-Instruct on sums of one-digit numbers, on this machine, and shows how it learns.

Everything is started and ended here: a Kafka broker, a vLLM worker, the pipeline, the learner. At the end
runs/NAME/ holds report.html, summary.json and the log. Example:

  asyncflow demo --seed 1 --steps 12 --max-staleness 0
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    with sigterm_is_ctrl_c():
        options = parse(DemoOptions, "demo", arguments, _DESCRIPTION)
        from pipelines.local.demo import run

        return run(options)
