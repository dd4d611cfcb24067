"""Curves as what plotly.js draws: plain JSON. Colours and grounds are the page's, for light and dark."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.report.curves import Curve, Trace

_MOST_POINTS = 1_500


def figure(curve: Curve, marks: Sequence[tuple[int, float, str]]) -> dict[str, Any]:
    """Title, unit and note for the page, data and layout for plotly.js.

    Args:
        curve: what to show.
        marks: restarts, as vertical lines: step, seconds since 1970, words.
    """
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": _X_TITLES[curve.x]}, **_AXES[curve.x]},
        "yaxis": {"rangemode": "tozero" if _is_positive(curve) else "normal"},
        "showlegend": False,  # the page has one that wraps
    }
    if curve.x != "updates" and curve.form == "lines":
        layout["shapes"] = [_mark(curve, step, seconds) for step, seconds, _ in marks]
    texts = {"title": curve.title, "unit": curve.unit, "note": curve.note}
    return {**texts, "data": [_trace(curve, trace) for trace in curve.traces], "layout": layout}


_X_TITLES = {"step": "step", "time": "UTC", "updates": "updates of the weights since its oldest token"}
_AXES: dict[str, dict[str, Any]] = {"step": {}, "time": {"type": "date"}, "updates": {"dtick": 1}}


def _is_positive(curve: Curve) -> bool:
    return all(value is None or value >= 0 for trace in curve.traces for value in trace.y)


def _mark(curve: Curve, step: int, seconds: float) -> dict[str, Any]:
    x = _moment(seconds) if curve.x == "time" else step + 0.5
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dot", "width": 1}}


def _trace(curve: Curve, trace: Trace) -> dict[str, Any]:
    x, y, errors = _thinned(trace)
    drawn: dict[str, Any] = {"name": trace.name, "x": [_moment(at) for at in x] if curve.x == "time" else x, "y": y}
    if curve.form == "bars":
        return {**drawn, "type": "bar"}
    drawn |= {"type": "scatter", "mode": "lines+markers" if len(x) <= 60 else "lines"}
    if curve.form == "area":
        drawn["fill"] = "tozeroy"
    if errors:
        drawn["error_y"] = {"type": "data", "array": errors, "thickness": 1}
    return drawn


def _thinned(trace: Trace) -> tuple[list[float], list[float | None], list[float | None] | None]:
    """At most 1,500 points: means of neighbours where there are more."""
    width = -(-len(trace.x) // _MOST_POINTS)
    errors = list(trace.errors) if trace.errors else None
    if width <= 1:
        return list(trace.x), [_short(value) for value in trace.y], errors
    starts = range(0, len(trace.x), width)
    return [trace.x[i] for i in starts], [_mean(trace.y[i : i + width]) for i in starts], errors and errors[::width]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(sum(known) / len(known)) if known else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
