"""A calibration and predictions for people, for pages and for programs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.plan.calibration import Calibration
from pipelines.plan.lengths import mean_length
from pipelines.plan.observe import Rates
from pipelines.plan.prediction import Prediction

_SHOWN = ("workload", "engine", "learner", "weights", "log")
_COLUMNS = ("GPUs", "engines", "ranks", "partitions", "groups a step", "s a step", "tokens/s", "linearity",
            "staleness", "dropped as stale", "slots filled", "engines idle", "engines paused", "learner idle",
            "waits for")  # fmt: skip


def to_text(calibration: Calibration, predictions: Sequence[Prediction], measured: Rates | None = None) -> str:
    """What is reckoned with, and a line a prediction."""
    lines = [*_calibration_lines(calibration), *_measured_lines(measured)]
    if predictions:
        rows = [_COLUMNS, *map(tuple, _rows(predictions))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["", "predicted, not measured"]
        lines += ["  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines += ["", *_legend(calibration, predictions)]
    return "\n".join(lines) + "\n"


def to_markdown(predictions: Sequence[Prediction]) -> str:
    """The table of predictions alone, for a page."""
    head = f"| {' | '.join(_COLUMNS)} |\n|{' ---: |' * (len(_COLUMNS) - 1)} --- |\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in _rows(predictions))


def to_json(calibration: Calibration, predictions: Sequence[Prediction], measured: Rates | None = None) -> str:
    """One object: the calibration with its sources, what the run did itself, and the predictions."""
    tree: dict[str, Any] = {
        "calibration": calibration.model_dump(mode="json"),
        "measured": asdict(measured) if measured else None,
        "predicted": [{**asdict(each), "waits_for": each.waits_for} for each in predictions],
    }
    return json.dumps(tree, indent=1) + "\n"


def _calibration_lines(calibration: Calibration) -> Iterator[str]:
    yield f"calibration {calibration.name}"
    told = [(f"{section}.{name}", _value(value)) for section in _SHOWN
            for name, value in getattr(calibration, section)]  # fmt: skip
    wide, broad = max(len(key) for key, _ in told), max(len(value) for _, value in told)
    for key, value in told:
        yield f"  {key:<{wide}}  {value:<{broad}}  {calibration.sources.get(key, 'default, or as given')}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g} to {value[-1]:g}, mean {mean_length(value):.1f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _measured_lines(measured: Rates | None) -> Iterator[str]:
    if measured is not None:
        yield ""
        yield (
            f"measured in {measured.steps} steps of the run: {measured.step_s:.3g} s a step, "
            f"{measured.samples_per_s:.3g} samples/s, {_rate(measured.tokens_per_s)} tokens/s, staleness "
            f"{measured.staleness_mean:.2f}"
        )


def _rows(predictions: Sequence[Prediction]) -> Iterator[list[str]]:
    first = predictions[0]
    for each in predictions:
        linearity = each.tokens_per_s / first.tokens_per_s / (each.gpus / first.gpus)
        yield [
            str(each.gpus), str(each.engines), str(each.ranks), str(each.partitions), str(each.groups_per_step),
            f"{each.step_s:.3g}", _rate(each.tokens_per_s), f"{linearity:.2f}",
            f"{each.staleness_mean:.2f}, {each.staleness_max}", _percent(each.stale_share), _percent(each.slots_filled),
            _percent(each.engine_idle), _percent(each.engine_paused), _percent(each.learner_idle), each.waits_for,
        ]  # fmt: skip


def _legend(calibration: Calibration, predictions: Sequence[Prediction]) -> Iterator[str]:
    yield "tokens/s: answers that are trained; linearity: tokens/s of a GPU over those of the first line's;"
    yield "staleness: mean and largest, in versions; slots filled: of the sequences that engines can decode at once;"
    yield "waits for: engines or learner, which would have to be more or faster; places: rollout.max_in_flight is too"
    yield "small; admission: a step waits for its last answers, a greater step or staleness would fill the engines"
    for each in predictions:
        if each.cost_per_million_tokens is not None:
            step = calibration.gpu_hour_price * each.gpus * each.step_s / 3600
            of_tokens = f"{each.cost_per_million_tokens:.3g} a million trained tokens"
            yield f"{each.gpus} GPUs cost {of_tokens}, {step:.3g} a step"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
