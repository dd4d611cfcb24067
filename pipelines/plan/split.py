"""How many of so many GPUs should answer, and how many should learn.

A closed form weighs every split: engines and learner side by side, or one after the other where nothing may be stale.
The best of these and some beside it are simulated, and the one that trains most tokens a second is proposed.
"""

from collections.abc import Iterable
from math import ceil

from pipelines.plan.calibration import Calibration, changed
from pipelines.plan.lengths import mean_length
from pipelines.plan.prediction import STEPS, Prediction, predict
from pipelines.plan.simulation import Shape
from schemas.errors import ConfigError

_BESIDE = (0.7, 0.85, 1.0, 1.2, 1.45)
"""Multiples of the closed form's ranks that are simulated: it knows no long tails, pauses or publishing."""
_TRIAL_STEPS = 6
_TRIAL_ENGINES = 32
"""A trial has less than twice as many: what is divided evenly behaves as the whole, but for its longest answer."""
_TRIAL_GROUPS = 32
"""Of a step, at least."""
_BUSY = 0.5
"""A share or a partition is proposed to be busy for at most this part of the time."""


def propose(
    calibration: Calibration, gpus: int, *, partitions: int | None = None, steps: int = STEPS, seed: int = 0
) -> Prediction:
    """The best split of so many GPUs, simulated.

    Args:
        calibration: how fast each part is.
        gpus: to be divided between engines and ranks of the learner.
        partitions: null for as many as keep pipeline and log at most half busy.
        steps: that are counted.
        seed: of the simulation.

    Raises:
        ConfigError: the GPUs are too few for one engine and the learner.
    """
    shapes = list(dict.fromkeys(_candidates(calibration, gpus, partitions)))
    best = max(shapes, key=lambda shape: _try(calibration, shape, seed)) if len(shapes) > 1 else shapes[0]
    return predict(calibration, best, steps=steps, seed=seed)


def _try(calibration: Calibration, shape: Shape, seed: int) -> float:
    """Trained tokens a second of a shape, for each of its GPUs; of a large one a part is simulated that is like it."""
    groups = calibration.workload.groups_per_step
    parts = max(1, min(shape.engines // _TRIAL_ENGINES, groups // _TRIAL_GROUPS))
    places = calibration.log.max_in_flight
    divided = {"workload.groups_per_step": groups, **({"log.max_in_flight": places} if places else {})}
    part = changed(calibration, {key: max(1, whole // parts) for key, whole in divided.items()})
    smaller = Shape(shape.engines // parts, max(1, shape.ranks // parts), ceil(shape.partitions / parts))
    found = predict(part, smaller, steps=_TRIAL_STEPS, seed=seed)
    return found.tokens_per_s / found.gpus


def enough_partitions(calibration: Calibration, engines: int) -> int:
    """Partitions, and shares of the rollout pipeline, for as many tokens as so many engines can make."""
    log, engine = calibration.log, calibration.engine
    tokens_per_s = engines * engine.slots / engine.decoding_step_s(engine.slots)
    busy = max(log.share_token_s, log.token_bytes / log.partition_bytes_per_s)
    return max(2, ceil(tokens_per_s * busy / _BUSY))


def _candidates(calibration: Calibration, gpus: int, partitions: int | None) -> Iterable[Shape]:
    per_engine, least = calibration.engine.gpus, calibration.learner.min_ranks
    most = gpus - per_engine
    if most < least:
        raise ConfigError(
            f"{gpus} GPUs are too few: an engine takes {per_engine} (engine.gpus) and the learner at least {least} "
            "(learner.min_ranks)"
        )
    best = min(range(least, most + 1), key=lambda ranks: _step_s(calibration, (gpus - ranks) // per_engine, ranks))
    for factor in _BESIDE:
        ranks = min(max(least, round(best * factor)), most)
        engines = (gpus - ranks) // per_engine
        yield Shape(engines, gpus - engines * per_engine, partitions or enough_partitions(calibration, engines))


def _step_s(calibration: Calibration, engines: int, ranks: int) -> float:
    """Seconds of a step by what engines and learner compute, without queues, tails and transfers."""
    work, engine, learner = calibration.workload, calibration.engine, calibration.learner
    samples = work.groups_per_step * work.group_size
    length = mean_length(work.response_tokens)
    under_way = samples * (1 + work.max_staleness) / engines
    sequences = max(1, round(min(engine.slots, under_way)))
    answer_s = samples / work.kept_share * length / engines / sequences * engine.decoding_step_s(sequences)
    train_s = learner.fixed_s + learner.token_s * samples * (length + work.prompt_tokens) / ranks
    return max(answer_s, train_s) if work.max_staleness else answer_s + train_s
