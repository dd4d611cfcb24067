"""A plan as text, for a person: what is wrong comes last, where the eye is."""

import sys
from collections.abc import Mapping, Sequence

from pipelines.dry_run.facts import probe
from pipelines.dry_run.plan import Section, Start, plan, wrong
from pipelines.dry_run.verbs import VERBS
from schemas.checks import Check

_DONE, _USER_ERROR = 0, 2


def rehearse(start: Start) -> int:
    """Prints what a verb would do.

    Returns:
        0 if nothing is wrong, else 2.
    """
    needs = VERBS["up" if start.is_stack else start.verb]
    facts = probe(
        start.config,
        start.directory,
        asks_broker=needs.asks_broker(start.config),
        wants_model=needs.model and not (start.is_stack and not start.config.model.path),
    )
    return _tell(start.verb, plan(start, facts))


def tell(verb: str, sections: Mapping[str, Sequence[Check]]) -> int:
    """Prints what a verb that belongs to no run would do; the checks by heading. Returns as :func:`rehearse`."""
    return _tell(verb, [Section(title, tuple(checks)) for title, checks in sections.items()])


def _tell(verb: str, sections: list[Section]) -> int:
    sys.stdout.write(render(verb, sections))
    return _USER_ERROR if wrong(sections) else _DONE


def render(verb: str, sections: list[Section]) -> str:
    """The whole page."""
    lines = [f"asyncflow {verb} --dry-run: nothing is started, nothing is written"]
    for section in sections:
        lines += ["", section.title, *(line for each in section.checks for line in _lines(each))]
    faults = wrong(sections)
    lines += ["", f"{len(faults)} wrong:" if faults else "nothing is wrong"]
    lines += [f"  {each.name}: {each.formula}: {each.remedy}" for each in faults]
    return "\n".join(lines) + "\n"


def _lines(each: Check) -> list[str]:
    mark = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}[each.verdict]
    shown = [f"  {mark:<8} {each.name}: {each.formula}"]
    return [*shown, f"  {'':<8} → {each.remedy}"] if each.remedy else shown
