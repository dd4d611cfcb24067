"""``report.html``: one self-contained page that a person reads after a run; opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.local.monitor import ShownSample
from schemas.evals import EvalResult
from schemas.ledger import StepEntry

_SAMPLES_SHOWN = 200


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that the page shows."""

    run: str
    summary: dict[str, Any]
    """As in ``summary.json``."""
    steps: Sequence[StepEntry]
    """Of the surviving line."""
    samples: Sequence[ShownSample]
    evals: Sequence[EvalResult]
    config: str
    """The resolved configuration as TOML."""
    made_at: datetime


def write_report(path: Path, data: ReportData) -> None:
    """Renders the page to ``path``."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("pipelines.local"), autoescape=select_autoescape(["html", "j2"]))
    page = environment.get_template("report.html.j2").render(
        data=data,
        plotlyjs=get_plotlyjs(),
        figures=[_figure(title, unit, traces) for title, unit, traces in _curves(data.steps)],
        samples=_spread(data.samples),
    )
    path.write_text(page)


def _spread(samples: Sequence[ShownSample]) -> list[ShownSample]:
    """At most 200 samples, evenly over the run."""
    stride = max(1, -(-len(samples) // _SAMPLES_SHOWN))
    return list(samples[::stride])


def _curves(steps: Sequence[StepEntry]) -> list[tuple[str, str, dict[str, list[float | None]]]]:
    def metric(name: str) -> list[float | None]:
        return [step.metrics.get(name) for step in steps]

    return [
        ("Reward", "mean of all groups of the step", {"reward": metric("reward_mean")}),
        ("Staleness", "weight versions", {"max": metric("staleness_max"), "mean": metric("staleness_mean")}),
        ("Gradient norm", "before clipping", {"grad norm": metric("grad_norm")}),
        ("Engine and learner", "mean |difference of logprobs|", {"gap": metric("logprob_gap_mean")}),
        ("Answer length", "tokens", {"mean": metric("response_tokens_mean")}),
        (
            "Seconds of a step",
            "s",
            {part: metric(f"seconds_{part}") for part in ("wait", "train", "publish")},
        ),
    ]


def _figure(title: str, unit: str, traces: dict[str, list[float | None]]) -> str:
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for name, values in traces.items():
        figure.add_trace(Scatter(x=list(range(1, len(values) + 1)), y=values, name=name, mode="lines+markers"))
    figure.update_layout(
        title=title, xaxis_title="step", yaxis_title=unit, height=320, margin={"l": 50, "r": 20, "t": 50, "b": 40}
    )
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False}
    )
    return html
