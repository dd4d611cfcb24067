"""Figures of a step: for the ledger, for Prometheus and for the log."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, get_args

import structlog

from schemas.endpoint import serve_metrics
from schemas.ledger import DropReason
from schemas.traces import HEADERS_IGNORED, SPANS_LOST
from schemas.trajectories import Sample
from trainers.accounts import Versions
from trainers.engine import Outcome
from trainers.masks import trained_mask
from trainers.planner import Plan, known_rewards

_log = structlog.get_logger(__name__)
_STATES: Final = ("starting", "waiting", "training")


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


FIGURES: Final[Mapping[str, str]] = {
    "step": "Steps of the surviving line.",
    "version": "Weight version that the step made.",
    "generation": "Starts of the learner.",
    "groups_trained": "Groups that contributed.",
    "groups_dropped": "Groups that were consumed without contributing.",
    "feedback_groups": "Of those trained, groups that people or programs rated.",
    "correction_groups": "Of those trained, corrections of rewards by later feedback.",
    "demonstration_groups": "Of those trained, texts that somebody gave as right.",
    "prompts_parked": "Admitted prompts that wait for feedback.",
    "reward_mean": "Mean reward of all groups consumed.",
    "reward_mean_trained": "Mean reward of the groups trained.",
    "staleness_max": "Age of the oldest trained sample in updates, answers to prompts alone.",
    "staleness_mean": "Mean age of the trained samples in updates, answers to prompts alone.",
    "feedback_staleness_max": "The same of feedback and corrections.",
    "tokens": "Tokens of prompts and responses that were trained.",
    "response_tokens_mean": "Mean length of the responses in tokens.",
    "tokens_too_old": "Tokens left out of the loss, as too old.",
    "loss": "What is minimised.",
    "grad_norm": "Norm of the gradient before it was scaled down.",
    "learning_rate": "Of the optimizer.",
    "drift": "With federation.proximal_mu, distance of the weights to the global version, before the update.",
    "updates": "With minibatches, how many changed the weights.",
    "logprob_gap_mean": "Mean of abs(policy - behaviour) in nats: staleness and mismatch of engines together.",
    "clip_fraction": "Share of the tokens where the clip changed the gradient.",
    "correction_cut": "Share of the tokens that a bound made lighter or left out.",
    "correction_weight": "Mean weight of the correction.",
    "kl": "Divergence from the reference policy in nats a token, before the coefficient.",
    "entropy": "Of the policy in nats a token, before the coefficient.",
    "value_loss": "Half the squared error of the value head, before the coefficient.",
    "return_mean": "Mean of what the value head is trained towards.",
    "value_explained_variance": "Share of the returns' variance that the values explain.",
    "seconds_wait": "Seconds waited for groups.",
    "seconds_held": "Seconds waited for the commit of the step before.",
    "seconds_train": "Seconds of computing.",
    "seconds_publish": "Seconds of writing and hashing weights, beside the next step.",
    "seconds_step": "Seconds of waiting and computing together.",
}
"""What the ledger has of a step, and what it means; a figure without a place in a step is left out there. Served as
``asyncflow_learner_NAME`` from the first step that has it."""


class Gauges:
    """The Prometheus endpoint: the figures of the last step, what is waited for, and what was dropped.

    Args:
        port: to listen on; 0 for none.
        host: address of this machine.

    Raises:
        PortError: something else listens there, or the address is not this machine's.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.registry = CollectorRegistry()
        self.registry.register(HEADERS_IGNORED)
        self.registry.register(SPANS_LOST)
        self._figures: dict[str, Gauge] = {}
        self._waiting = Gauge(
            "asyncflow_learner_groups_waiting", "Groups at hand for the next step.", registry=self.registry
        )
        self._state = Gauge(
            "asyncflow_learner_state", "1 for what it does now (starting, waiting, training), 0 for the rest.",
            ["state"], registry=self.registry,
        )  # fmt: skip
        self._dropped = Counter(
            "asyncflow_learner_dropped_total", "Groups dropped, by reason.", ["reason"], registry=self.registry
        )
        for reason in get_args(DropReason):  # else an alert would not see the first of them
            self._dropped.labels(reason)
        self._enter("starting")
        serve_metrics("learner", host, port, self.registry)

    def wait(self, groups: int) -> None:
        """So many groups are at hand, and more are waited for."""
        self._enter("waiting")
        self._waiting.set(groups)

    def train(self) -> None:
        """A step is computed."""
        self._enter("training")

    def _enter(self, state: str) -> None:
        for each in _STATES:
            self._state.labels(each).set(each == state)

    def drop(self, reasons: Iterable[str]) -> None:
        """Groups of a committed step that did not contribute."""
        for reason in reasons:
            self._dropped.labels(reason).inc()

    def show(self, figures: Mapping[str, float]) -> None:
        """Sets the figures of the last step."""
        from prometheus_client import Gauge

        for name, value in figures.items():
            if name not in self._figures:
                meaning = f"Of the last step. {FIGURES.get(name, name)}"
                self._figures[name] = Gauge(f"asyncflow_learner_{name}", meaning, registry=self.registry)
            self._figures[name].set(value)
