"""What the demo can be asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


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
    dry_run: bool = False
    """Say what would be started where, what it needs and what is wrong (exit code 2), and start and write nothing."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""
