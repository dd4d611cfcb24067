"""Figures of a step: for the ledger, for Prometheus and for the log."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import structlog

from schemas.errors import PortError
from schemas.trajectories import Sample
from trainers.accounts import Versions
from trainers.engine import Outcome
from trainers.masks import trained_mask
from trainers.planner import Plan, known_rewards

_log = structlog.get_logger(__name__)
_HOST: Final = "127.0.0.1"


def of_plan(plan: Plan, versions: Versions, steps_done: int) -> dict[str, float]:
    """What can be said of a plan before it is trained."""
    figures: dict[str, float] = {"groups_dropped": len(plan.dropped)}
    if plan.rewards:
        figures["reward_mean"] = _mean(plan.rewards)
    if plan.again and "reward_mean" in plan.again.metrics:
        figures["reward_mean"] = plan.again.metrics["reward_mean"]  # the groups without variance are not read again
    if plan.arrivals:
        figures |= _of_arrivals(plan) | _of_ages(plan, versions, steps_done)
    if rewards := known_rewards(plan.arrivals):
        figures["reward_mean_trained"] = _mean(rewards)
    return figures


def _of_ages(plan: Plan, versions: Versions, steps_done: int) -> dict[str, float]:
    """Of answers to prompts, and of feedback where there is some; of a demonstration there is none."""
    ages: dict[str, list[int]] = {"train": [], "feedback": [], "correction": [], "demonstration": []}
    for arrival in plan.arrivals:
        left_out = set(plan.too_old) if arrival.purpose == "train" else set[int]()
        for sample in arrival.samples:
            young = {span.version for span in sample.weight_version_spans} - left_out
            ages[arrival.purpose] += [max(versions.staleness(each, steps_done) for each in young)] if young else []
    found: dict[str, float] = {}
    if ages["train"]:
        found |= {"staleness_max": max(ages["train"]), "staleness_mean": _mean(ages["train"])}
    if late := ages["feedback"] + ages["correction"]:
        found["feedback_staleness_max"] = max(late)
    return found


def _of_arrivals(plan: Plan) -> dict[str, float]:
    samples = [sample for arrival in plan.arrivals for sample in arrival.samples]
    purposes = Counter(arrival.purpose for arrival in plan.arrivals)
    lengths = [len(sample.response_token_ids) for sample in samples]
    return {
        **{f"{purpose}_groups": purposes[purpose] for purpose in ("feedback", "correction", "demonstration")},
        "tokens": sum(lengths) + sum(len(sample.prompt_token_ids) for sample in samples),
        "response_tokens_mean": _mean(lengths),
        "tokens_too_old": sum(_count_too_old(sample, plan.too_old) for sample in samples),
    }


def _count_too_old(sample: Sample, too_old: Sequence[int]) -> int:
    """Tokens that would be trained if their weights were younger."""
    return 0 if sample.reward is None else sum(sample.loss_mask) - sum(trained_mask(sample, too_old))


def of_outcome(outcome: Outcome) -> dict[str, float]:
    """What training says; what is not finite cannot stand in JSON and is left out."""
    figures = {"loss": outcome.loss, "grad_norm": outcome.grad_norm, **outcome.figures}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Gauges:
    """The Prometheus endpoint: ``asyncflow_learner_…``, one gauge a figure of the last step."""

    def __init__(self, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._registry = CollectorRegistry()
        self._gauges: dict[str, object] = {}
        if port:
            try:
                start_http_server(port, addr=_HOST, registry=self._registry)
            except OSError as error:
                raise PortError(
                    f"learner.metrics_port = {port}: {error.strerror}; choose another, or 0 for none"
                ) from error

    def show(self, figures: dict[str, float]) -> None:
        """Sets all gauges."""
        from prometheus_client import Gauge

        for name, value in figures.items():
            gauge = self._gauges.get(name)
            if not isinstance(gauge, Gauge):
                gauge = Gauge(f"asyncflow_learner_{name}", f"Of the last step: {name}", registry=self._registry)
                self._gauges[name] = gauge
            gauge.set(value)
