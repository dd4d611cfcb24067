"""What a plan predicts of one shape: throughput, staleness, idle shares and costs.

Calibration and Shape ──► Simulation, its first steps left out ──► Prediction
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from pipelines.plan.calibration import Calibration
from pipelines.plan.simulation import Shape, Simulation, Totals

STEPS = 24
"""That are simulated and counted where nobody says."""
_HOUR_S = 3600.0
_FULL_BELOW = 0.15
"""A part whose idle share is smaller is what the others wait for."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one shape, in its steady state. Rates are a second of the clock."""

    engines: int
    ranks: int
    partitions: int
    gpus: int
    """Of engines and ranks together."""
    groups_per_step: int
    max_staleness: int
    step_s: float
    """From one step to the next."""
    samples_per_s: float
    """Trained."""
    tokens_per_s: float
    """Of the answers that are trained."""
    generated_tokens_per_s: float
    """Of all answers, those that are dropped too."""
    staleness_mean: float
    """Versions that a trained group is behind."""
    staleness_max: int
    stale_share: float
    """Groups dropped as too old, of all that come to the learner."""
    slots_filled: float
    """Share of the engines' sequences that decode, in the mean."""
    engine_idle: float
    """Share of the time in which an engine has nothing to do."""
    engine_paused: float
    """Share of the time in which it takes new weights and computes again what is under way."""
    engine_prefill: float
    """Share of the time in which it computes prompts."""
    places_filled: float | None
    """Share of ``max_in_flight`` that groups take, in the mean; null where nothing but admission bounds them."""
    learner_idle: float
    """Share of the time in which the learner waits for groups."""
    learner_held: float
    """Share of the time in which it waits for the commit of the step before."""
    cost_per_million_tokens: float | None
    """Of trained answers; null where a GPU has no price."""

    @property
    def waits_for(self) -> Literal["learner", "engines", "places", "admission"]:
        """What would have to be more or faster.

        ``places``: engines and learner have room, but no more than ``max_in_flight`` groups are asked for.
        ``admission``: the same, but no more prompts may be under way, and the last answers of a step are waited for.
        """
        if self.learner_idle < _FULL_BELOW:
            return "learner"
        can_decode = 1 - self.engine_paused - self.engine_prefill
        if self.slots_filled > (1 - _FULL_BELOW) * can_decode:
            return "engines"
        return "places" if (self.places_filled or 0.0) > 1 - _FULL_BELOW else "admission"


def predict(calibration: Calibration, shape: Shape, *, steps: int = STEPS, seed: int = 0) -> Prediction:
    """Simulates a shape.

    Args:
        calibration: how fast each part is, and what is asked.
        shape: how much there is of each.
        steps: that are counted; as many as the staleness and three more come before them.
        seed: of lengths and choices.
    """
    simulation = Simulation(calibration, shape, seed)
    before_steps = calibration.workload.max_staleness + 3
    before = deepcopy(simulation.run(before_steps))
    return _between(calibration, shape, before, simulation.run(before_steps + steps))


def gpus_of(calibration: Calibration, shape: Shape) -> int:
    """GPUs that a shape takes."""
    return shape.engines * calibration.engine.gpus + shape.ranks


def _between(calibration: Calibration, shape: Shape, before: Totals, after: Totals) -> Prediction:
    work, passed_s = calibration.workload, after.at_s - before.at_s
    groups = after.groups - before.groups
    engine_s = shape.engines * passed_s
    tokens_per_s = (after.response_tokens - before.response_tokens) / passed_s
    paused_s = after.worked.paused_s - before.worked.paused_s
    prefill_s = after.worked.prefill_s - before.worked.prefill_s
    decoding_s = after.worked.decoding_s - before.worked.decoding_s
    stale, places = after.stale - before.stale, calibration.log.max_in_flight
    return Prediction(
        engines=shape.engines,
        ranks=shape.ranks,
        partitions=shape.partitions,
        gpus=gpus_of(calibration, shape),
        groups_per_step=work.groups_per_step,
        max_staleness=work.max_staleness,
        step_s=passed_s * work.groups_per_step / groups,
        samples_per_s=groups * work.group_size / passed_s,
        tokens_per_s=tokens_per_s,
        generated_tokens_per_s=(after.generated_tokens - before.generated_tokens) / passed_s,
        staleness_mean=(after.staleness - before.staleness) / groups,
        staleness_max=after.staleness_max,
        stale_share=stale / (stale + groups),
        slots_filled=(after.worked.sequence_s - before.worked.sequence_s) / (engine_s * calibration.engine.slots),
        engine_idle=max(0.0, 1 - (decoding_s + paused_s + prefill_s) / engine_s),
        engine_paused=paused_s / engine_s,
        engine_prefill=prefill_s / engine_s,
        places_filled=(after.group_s - before.group_s) / passed_s / places if places else None,
        learner_idle=(after.waiting_s - before.waiting_s) / passed_s,
        learner_held=(after.held_s - before.held_s) / passed_s,
        cost_per_million_tokens=_cost(calibration, shape, tokens_per_s),
    )


def _cost(calibration: Calibration, shape: Shape, tokens_per_s: float) -> float | None:
    if not calibration.gpu_hour_price:
        return None
    return calibration.gpu_hour_price * gpus_of(calibration, shape) / _HOUR_S / tokens_per_s * 1e6
