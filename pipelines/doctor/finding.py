"""What a check is given, and what it says."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from schemas.config import RunConfig

Verdict = Literal["ok", "warning", "problem", "skipped"]
"""``warning``: works, but not everything, or not well. ``problem``: nothing works until it is mended. ``skipped``:
could not be told, or nobody asked."""


class Finding(NamedTuple):
    """One line. Example: ``Finding("python", "ok", "3.12.3")``."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Of what the doctor is asked."""

    config: RunConfig | None = None
    """Of a run; null for the machine alone."""
    directory: Path | None = None
    """Of the run, if it has one here."""
    bootstrap: str | None = None
    """Brokers to ask for; null for none."""

    @property
    def settings(self) -> RunConfig:
        """The run's configuration, or the defaults."""
        return self.config or RunConfig()


Check: TypeAlias = Callable[[Subject], Iterable[Finding]]
"""Asks one thing of the machine. It changes nothing and takes less than some seconds."""
