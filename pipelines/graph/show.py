"""A graph as text for a person, as Mermaid or dot for a page, or as JSON for a program."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pipelines.graph.graph import Edge, Graph
from pipelines.graph.runners import WORDS, answer_of, judge

_WIDTH: Final = 118


def to_text(graph: Graph, runners: Sequence[str]) -> str:
    """Steps, what they use, and what each runner makes of that; columns of a fixed-width font."""
    return "\n".join([*_steps(graph), *_uses(graph), *_runners(graph, runners)]) + "\n"


def _steps(graph: Graph) -> Iterator[str]:
    yield f"the {graph.pipeline} pipeline of the run {graph.run}: {len(graph.steps)} steps"
    yield ""
    wide = max(len(step.name) for step in graph.steps)
    for edge in graph.edges:
        arrow = "═►" if edge.is_unbounded else "─►"
        target = edge.target or "(nobody reads it)"
        yield f"  {edge.source:<{wide}}  {arrow} {target}: {edge.element}"
    yield ""
    yield "  ═► has no end; after the colon, the type of the elements"
    yield ""


def _uses(graph: Graph) -> Iterator[str]:
    yield "what it uses"
    for feature, steps in graph.uses.items():
        yield f"  {feature}: {', '.join(steps) or 'the pipeline as a whole'}"
    yield f"  windows: {'; '.join(graph.windows)}"
    yield f"  environment: {', '.join(graph.environments)}, until --environment_type says another"
    yield ""


def _runners(graph: Graph, runners: Sequence[str]) -> Iterator[str]:
    wide = max(map(len, runners))
    for runner in runners:
        verdicts = judge(runner, graph.uses)
        worst = answer_of(verdicts)
        yield f"{runner:<{wide}}  {WORDS[worst]}"
        said: dict[str, list[str]] = {}
        for each in verdicts:
            if each.why:
                answer = "" if each.answer == worst else f" {WORDS[each.answer]}"
                said.setdefault(f"{answer}: {each.why}", []).append(each.feature)
        for why, features in said.items():
            yield textwrap.fill(
                ", ".join(features) + why,
                _WIDTH,
                initial_indent="  - ",
                subsequent_indent="    ",
                break_on_hyphens=False,
            )
    yield ""
    yield "runs: this project ran it, with a real broker; should run: by its documentation or source, not run here"


def to_json(graph: Graph, runners: Sequence[str]) -> str:
    """One object: steps, edges, uses and verdicts, with names as in :class:`Graph`."""
    tree: dict[str, Any] = graph._asdict()
    tree["steps"] = [step._asdict() for step in graph.steps]
    tree["edges"] = [edge._asdict() for edge in graph.edges]
    tree["runners"] = {runner: _verdicts(graph, runner) for runner in runners}
    return json.dumps(tree, indent=2) + "\n"


def _verdicts(graph: Graph, runner: str) -> dict[str, Any]:
    verdicts = judge(runner, graph.uses)
    rows = [{"feature": each.feature, "answer": WORDS[each.answer], "why": each.why} for each in verdicts]
    return {"answer": WORDS[answer_of(verdicts)], "features": rows}


def to_mermaid(graph: Graph) -> str:
    """A flowchart; composites are boxes around their steps, thick arrows have no end."""
    ids = _ids(graph)
    lines = ["flowchart LR"]
    for box, names in _boxes(graph).items():
        inner = [f'{ids[name]}["{_label(box, name)}"]' for name in names]
        lines += [f'  subgraph "{box}"', *(f"    {each}" for each in inner), "  end"]
    lines += [
        f'  {ids[edge.source]} {"==>" if edge.is_unbounded else "-->"}|"{edge.element}"| {ids[edge.target]}'
        for edge in _read(graph)
        if edge.target
    ]
    return "\n".join(lines) + "\n"


def to_dot(graph: Graph) -> str:
    """A digraph for Graphviz; composites are clusters, bold edges have no end."""
    ids = _ids(graph)
    lines = [f'digraph "{graph.pipeline}" {{', "  rankdir=LR; node [shape=box];"]
    for number, (box, names) in enumerate(_boxes(graph).items()):
        inner = " ".join(f'{ids[name]} [label="{_label(box, name)}"];' for name in names)
        lines.append(f'  subgraph cluster_{number} {{ label="{box}"; {inner} }}')
    for edge in _read(graph):
        bold = ", style=bold" if edge.is_unbounded else ""
        lines.append(f'  {ids[edge.source]} -> {ids[str(edge.target)]} [label="{edge.element}"{bold}];')
    return "\n".join([*lines, "}"]) + "\n"


def _ids(graph: Graph) -> dict[str, str]:
    return {step.name: f"s{number}" for number, step in enumerate(graph.steps)}


def _boxes(graph: Graph) -> dict[str, list[str]]:
    """Steps by the first word of their names."""
    boxes: dict[str, list[str]] = {}
    for step in graph.steps:
        boxes.setdefault(step.name.partition("/")[0], []).append(step.name)
    return boxes


def _label(box: str, name: str) -> str:
    return name.removeprefix(f"{box}/")


def _read(graph: Graph) -> list[Edge]:
    return [edge for edge in graph.edges if edge.target]
