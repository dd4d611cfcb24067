"""Which name may have been meant: for flags, keys, verbs, tasks, rewards, objectives and whatever else has a name."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Final

_CLOSE: Final = 0.6
_FEW: Final = 3
"""So many names can be read at a glance."""


def did_you_mean(given: str, known: Iterable[str], form: Callable[[str], str] = str, others: str = "there are") -> str:
    """The nearest name as a question, or else all of them.

    Args:
        given: what was written; case, dashes and underscores do not count.
        known: the names that there are.
        form: how names are written, such as ``repr``.
        others: before the list of all names, where none is near.

    Example: ``did_you_mean("grpoo", ["grpo", "rloo"]) == "did you mean grpo?"``.
    """
    names = list(known)
    near = nearest(given, names)
    return f"did you mean {form(near)}?" if near else f"{others} {', '.join(names)}"


def nearest(given: str, known: Iterable[str], cutoff: float = _CLOSE) -> str | None:
    """The name most like the given one; null if none is like it."""
    plain = {_plain(name): name for name in reversed(list(known))}
    near = get_close_matches(_plain(given), list(reversed(plain)), n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def nearest_path(given: str, known: Iterable[str], cutoff: float = _CLOSE) -> str | None:
    """As :func:`nearest`, of dotted names.

    Those that end alike, of the same section if there are some, are nearer than one that looks alike.

    Example: ``--steps`` finds ``--learner.steps or --scorer.steps``.
    """
    names = list(known)
    alike = [name for name in names if _plain(_leaf(name)) == _plain(_leaf(given))]
    section = given.partition(".")[0] + "."
    below = [name for name in alike if name.startswith(section)]
    few = next((some for some in (below, alike) if 0 < len(some) <= _FEW), None)
    return " or ".join(few) if few else nearest(given, names, cutoff)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _leaf(name: str) -> str:
    return name.removeprefix("--").rpartition(".")[2]
