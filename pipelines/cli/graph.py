"""``asyncflow graph``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from pipelines.cli.options import ProcessOptions, base_config, parse

_DESCRIPTION = """Shows what a pipeline is made of, what it asks of a Beam runner, and which runners can do that.

It is read from the pipeline's portable proto, as a runner would get it; nothing is started or connected. A runner runs
it (this project did that, with a real broker), should run it (by its documentation, not run here), or does not. Exit
code 1 if --runner names one that does not. Examples:

  asyncflow graph rollout
  asyncflow graph join-feedback --config runs/demo/config.toml --runner flink
  asyncflow graph rollout --format mermaid > rollout.mmd
"""


@dataclass(frozen=True)
class GraphOptions(ProcessOptions):
    """Arguments of the verb."""

    pipeline: tyro.conf.Positional[Literal["rollout", "join-feedback"]] = tyro.MISSING
    """Which one."""
    format: Literal["text", "mermaid", "dot", "json"] = "text"
    """Mermaid and dot are the picture alone; JSON is everything."""
    runner: Literal["prism", "flink", "dataflow", "fnapi"] | None = None
    """Judge this one only. fnapi is the runner within Beam's Python, for tests."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(GraphOptions, "graph", arguments, _DESCRIPTION, GraphOptions(run=base_config(arguments)))
    from pipelines.graph import runners, show
    from pipelines.graph.graph import graph_of

    graph = graph_of(options.pipeline, options.run)
    judged = [options.runner] if options.runner else list(runners.TABLE)
    if options.format in ("mermaid", "dot"):
        sys.stdout.write((show.to_mermaid if options.format == "mermaid" else show.to_dot)(graph))
    else:
        sys.stdout.write((show.to_json if options.format == "json" else show.to_text)(graph, judged))
    refused = options.runner and runners.answer_of(runners.judge(options.runner, graph.uses)) == runners.Answer.NOT
    return 1 if refused else 0
