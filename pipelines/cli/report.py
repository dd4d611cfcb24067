"""``asyncflow report``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """Writes one self-contained HTML page about a run: curves, answers, faults, evaluations, lineage.

It is read from the topics, of a run that goes on or has ended; the log of a finished run of this machine is served
for the time. The page opens without a network. Examples:

  asyncflow report demo
  asyncflow report team-run --bootstrap kafka.example:9092 --out team-run.html
  asyncflow report --config prod.toml
"""


@dataclass(frozen=True)
class ReportOptions:
    """Arguments of the verb."""

    run: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    """Directory or name of the run."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The page; by default report.html in the run's directory, or RUN-report.html here if it has none."""
    bootstrap: str | None = None
    """Brokers as host:port, for a run without a directory here; by default those of its configuration."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of NAME: of a run without a directory here whose brokers ask who
    one is (kafka.client)."""
    json: bool = False
    """Print one JSON object: the page, its bytes, the audit's verdict and the faults in words."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(ReportOptions, "report", arguments, _DESCRIPTION)
    from pipelines.report.page import REPORT_NAME, write_report
    from pipelines.runs import NAME, find_place, served

    _, directory = find_place(options.run, options.config, options.bootstrap, flag=NAME)
    with served(options.run, options.bootstrap, options.config) as config:
        out = options.out or (directory / REPORT_NAME if directory else Path(f"{config.name}-{REPORT_NAME}"))
        facts = write_report(config, directory, out)
    faults = [fault.text for fault in facts.faults]
    told = {"page": str(out), "bytes": out.stat().st_size, "audit": facts.verdict.ok, "faults": faults}
    sys.stdout.write(f"{json.dumps(told, indent=2)}\n" if options.json else _line(out, len(faults), facts.verdict.ok))
    return 0


def _line(out: Path, faults: int, ok: bool) -> str:
    told = "no faults" if not faults else f"{faults} {'fault' if faults == 1 else 'faults'} named"
    return f"{out}: {told}, audit {'passed' if ok else 'FAILED'}\n"
