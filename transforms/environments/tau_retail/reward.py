"""Whether a conversation did what it should: 1 or 0, by tau-bench's rule.

1 if the database is left as the right actions leave it, and every output was said to the user; 0 otherwise. How the
agent came there does not count, and nothing is partly right.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from transforms.environments.tau_retail import tools
from transforms.environments.tau_retail.calls import ToolCall
from transforms.environments.tau_retail.database import Database, View


class Verdict(NamedTuple):
    """Of a conversation that is over."""

    database: float
    """1 if it is as it should be, else 0."""
    outputs: float
    """The share of the outputs that were said; 1 if there are none."""

    @property
    def reward(self) -> float:
        """1 if all of it is right, else 0."""
        return float(self.database == 1.0 and self.outputs == 1.0)


def judge(view: View, said: Iterable[str], actions: Iterable[ToolCall], outputs: Sequence[str]) -> Verdict:
    """The verdict.

    Args:
        view: as the agent has left it.
        said: what the agent said to the user, answer by answer.
        actions: the right ones.
        outputs: what the user has to be told.
    """
    expected = after(view.database, actions)
    return Verdict(float(view.changes() == expected.changes()), _share_said(said, outputs))


def after(database: Database, actions: Iterable[ToolCall]) -> View:
    """The shop after actions. One that a tool refuses changes nothing."""
    view = View(database)
    for action in actions:
        tools.use(view, action)
    return view


def _share_said(said: Iterable[str], outputs: Sequence[str]) -> float:
    """Case does not count, and commas in what was said do not: 1,093.34 is 1093.34."""
    texts = [text.lower().replace(",", "") for text in said]
    found = sum(any(output.lower() in text for text in texts) for output in outputs)
    return found / len(outputs) if outputs else 1.0
