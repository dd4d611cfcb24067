"""``asyncflow learn-scorer``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start

_DESCRIPTION = """Trains a reward model or a critic from the trajectories of a run, beside its learner or after it.

It reads the log from the beginning, writes nothing of the run, and prints how well it judges held-out groups, one line
of JSON a report. At its end, on SIGTERM and Ctrl-C too, it writes scorer.root/model, which transformers loads as
AutoModelForSequenceClassification. Examples:

  asyncflow learn-scorer --config runs/demo/config.toml --scorer.kind reward --scorer.root models/judge
  asyncflow learn-scorer --config runs/demo/config.toml --scorer.kind critic --scorer.root models/critic \\
    --scorer.until-end-of-log
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse_start("learn-scorer", arguments, _DESCRIPTION)
    if options.dry_run:
        return dry_run("learn-scorer", options.run)
    from trainers.learn_scorer import run

    return run(options.run)
