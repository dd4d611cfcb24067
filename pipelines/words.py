"""Ages, counts and reasons as every screen, line and page says them, and others' words made safe to print."""

from collections.abc import Mapping


def duration(seconds: float) -> str:
    """``95 s``, ``12 min``, ``3.5 h`` or ``2.1 days``."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.{0 if divisor < 3600 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def counted(number: int, noun: str) -> str:
    """``1 group``, ``12,000 groups``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(counts: Mapping[str, int]) -> str:
    """``12 reward_timeout, 3 not_json``: the most frequent first."""
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda each: -each[1]))


def printable(text: str) -> str:
    """In one line, without what a terminal would obey: models and other programs may write anything into a topic."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
