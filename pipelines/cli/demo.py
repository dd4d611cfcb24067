"""``asyncflow demo``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """Trains SmolLM2-135M-Instruct on sums of one-digit numbers, on this machine, and shows how it learns.

Everything is started and ended here: a Kafka broker, a vLLM worker, the pipeline, the learner. At the end
runs/NAME/ holds report.html, summary.json and the log. Example:

  asyncflow demo --seed 1 --steps 12 --max-staleness 0
"""


@dataclass(frozen=True)
class DemoOptions:
    """Arguments of the demo; null takes the value of ``pipelines/presets/demo.toml``."""

    seed: int = 0
    """Of everything random."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Optimizer steps; by default 24."""
    max_staleness: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Most weight versions between the one that answered and the one that is trained; by default 1, 0 is on policy."""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON lines in the form of the prompts topic; the last tenth is held out. By default sums of one-digit numbers."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Hugging Face directory; by default SmolLM2-135M-Instruct."""
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of the run and its directory below runs/; by default one that is not taken."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(DemoOptions, "demo", arguments, _DESCRIPTION)
    from pipelines.local.demo import run

    return run(options)
