"""What people see of a curriculum: a line now and then, and figures of each task at the end."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.curriculum.history import Result
from pipelines.curriculum.selection import Pool
from pipelines.curriculum.settings import Selection


@dataclass
class Window:
    """What happened since the last line."""

    drawn: Counter[str] = field(default_factory=Counter)
    """Prompts, by task."""
    passed: float = 0.0
    answers: int = 0
    groups: int = 0
    too_easy: int = 0
    too_hard: int = 0

    def add(self, results: Iterable[Result], selection: Selection) -> None:
        """Takes in results that have a reward."""
        for result in results:
            if not result.rewards:
                continue
            passed = selection.passed(result.rewards)
            self.groups += 1
            self.answers += len(result.rewards)
            self.passed += passed
            self.too_easy += passed == len(result.rewards)
            self.too_hard += passed == 0

    def show(self) -> dict[str, Any]:
        """As the fields of a line of the log; shares are of groups, what nothing is known of is null."""
        total = self.drawn.total()
        return {
            "drawn": total,
            "shares": {name: round(count / total, 3) for name, count in self.drawn.items()} if total else {},
            "pass_rate": _ratio(self.passed, self.answers),
            "too_easy": _ratio(self.too_easy, self.groups),
            "too_hard": _ratio(self.too_hard, self.groups),
        }


def figures(pool: Pool) -> dict[str, Any]:
    """A pool as it stands: its prompts, how many of them were answered, and what those answers say."""
    seen = pool.answers > 0
    count = int(np.count_nonzero(seen))
    rates = pool.passes[seen] / pool.answers[seen]
    return {
        "weight": pool.weight,
        "prompts": len(pool.ids),
        "drawn": int(pool.draws.sum()),
        "seen": count,
        "given_up": int(np.count_nonzero(pool.given_up)),
        "pass_rate": _ratio(float(rates.sum()), count),
        "too_easy": _ratio(int(np.count_nonzero(rates == 1)), count),
        "too_hard": _ratio(int(np.count_nonzero(rates == 0)), count),
    }


def summary(pools: Sequence[Pool]) -> dict[str, dict[str, Any]]:
    """The figures of all pools, by name."""
    return {pool.name: figures(pool) for pool in pools}


def _ratio(part: float, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None
