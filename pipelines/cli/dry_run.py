"""``--dry-run`` of every verb that starts something."""

from pathlib import Path

from schemas.checks import Check
from schemas.config import RunConfig


def dry_run(  # noqa: PLR0913 - what verbs differ in
    verb: str,
    config: RunConfig,
    *said: Check,
    directory: Path | None = None,
    resume: bool = False,
    gateway: bool = False,
    feedback: bool = False,
    evaluates: bool = False,
) -> int:
    """Prints what the verb would do and returns the exit code; for the arguments see ``pipelines/dry_run/plan.py``."""
    from pipelines.dry_run.plan import Start
    from pipelines.dry_run.show import rehearse

    return rehearse(Start(verb, config, directory, resume, gateway, feedback, evaluates, said))
