"""``asyncflow serve-scorer``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import parse
from schemas.scoring import ScorerServerConfig

_DESCRIPTION = """Serves a sequence classifier with one label, in batches, for the reward reward_model.

What asyncflow learn-scorer writes is one; so are the reward models of others that transformers loads as
AutoModelForSequenceClassification. It ends on SIGTERM and Ctrl-C. Example:

  asyncflow serve-scorer --model models/judge/model --port 8100
"""


@dataclass(frozen=True)
class ServeScorerOptions:
    """Arguments of the verb."""

    dry_run: bool = False
    """Say what would be served where and what is wrong (exit code 2), and serve nothing."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""
    server: Annotated[ScorerServerConfig, tyro.conf.arg(name="")] = field(default_factory=ScorerServerConfig)


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(ServeScorerOptions, "serve-scorer", arguments, _DESCRIPTION)
    if options.dry_run:
        from pipelines.dry_run.scorer import rehearse_scorer

        return rehearse_scorer(options.server)
    from pipelines.reward_model.serve import run

    try:
        with sigterm_is_ctrl_c():  # until it serves and looks after signals itself
            return run(options.server)
    except KeyboardInterrupt:
        return 0
