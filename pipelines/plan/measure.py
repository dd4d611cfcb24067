"""A calibration from a run's own log and what its workers logged; what each value is from is written beside it.

log ──► Observed ──► occupancy ──► engine           worker's log ──► weights
            ├──► lengths, group size, staleness     configuration ──► places, slots
            └──► steps ──► learner
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipelines.plan.calibration import Calibration
from pipelines.plan.lengths import quantiles_of
from pipelines.plan.observe import Observed
from pipelines.plan.occupancy import Pace, beginnings, measure_pace
from schemas.complaints import explain
from schemas.config import RunConfig
from schemas.errors import RunError
from schemas.ledger import StepEntry

_ALIKE = 0.05
"""What differs by less than this, relative to the mean, does not tell two parts of a time apart."""
_APPLIED = re.compile(r"\bversion_applied\b.*")
_SECONDS = re.compile(r"\b(\w+_s)=(\d+(?:\.\d+)?)")
_BEFORE_PAUSE = ("seen_s", "verify_s", "open_s")


@dataclass
class _Draft:
    """Values and where they are from, by dotted key."""

    tree: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, source: str) -> None:
        section, _, name = key.partition(".")
        self.tree.setdefault(section, {})[name] = value
        self.sources[key] = source


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of one run."""

    config: RunConfig
    """Where the run has no directory here, only what a user gave."""
    observed: Observed
    directory: Path | None = None
    """With the logs of its processes; null if it has none here."""

    def said(self, key: str) -> str:
        """The source of what the configuration says."""
        return f"configuration: {key}" if self.directory else f"default of {key}: the run has no directory here"


def calibrate(runs: Sequence[Run]) -> Calibration:
    """What a plan reckons with.

    Args:
        runs: at least one, from which everything is taken; further ones, whose engines computed other numbers of
            sequences at once, tell how their speed depends on that.

    Raises:
        RunError: the logs say too little.
    """
    draft, first = _Draft(), runs[0]
    _add_workload(draft, first.observed, first.config)
    _add_engine(draft, runs)
    _add_learner(draft, first.observed)
    _add_weights(draft, first.directory)
    _add_log(draft, first)
    name = first.config.name
    try:
        return Calibration.model_validate({"name": name, "sources": draft.sources, **draft.tree})
    except ValidationError as error:
        raise RunError(f"the log of {name!r} gives no calibration: {explain(error, Calibration)}") from error


def _add_workload(draft: _Draft, observed: Observed, config: RunConfig) -> None:
    groups, log = observed.answered, observed.newest("trajectories")
    lengths = [length for each in groups for length in each.lengths]
    draft.put("workload.response_tokens", quantiles_of(lengths), f"{log}: {len(lengths)} answers")
    draft.put("workload.prompt_tokens", float(np.mean([each.prompt_tokens for each in groups])), f"{log}: mean")
    ((size, times),) = Counter(len(each.lengths) for each in groups).most_common(1)
    draft.put("workload.group_size", size, f"{log}: {times} of {len(groups)} groups have as many samples")
    settings = observed.start.settings if observed.start else None
    where = "ledger: the newest start" if settings else "configuration"
    said = settings or config.learner
    draft.put("workload.groups_per_step", said.groups_per_step, where)
    draft.put("workload.max_staleness", said.max_staleness, where)
    trained = sum(len(step.trained) for step in observed.steps)
    useless = sum(group.reason == "zero_variance" for step in observed.steps for group in step.dropped)
    if trained:
        said_of = f"{observed.newest('ledger')}: {useless} groups without variance beside {trained} trained"
        draft.put("workload.kept_share", trained / (trained + useless), said_of)


def _add_engine(draft: _Draft, runs: Sequence[Run]) -> None:
    config, paces = runs[0].config, [_pace(run) for run in runs]
    step_s, sequence_s = _fit_pace(paces)
    at = ", ".join(f"{pace.sequences:.3g}" for pace in paces)
    logs = runs[0].observed.newest("trajectories and admission")
    source = f"{logs}: engines that computed {at} sequences at once in the mean"
    if not sequence_s:
        source += "; taken to be the same at any number"
    draft.put("engine.step_s", step_s, source)
    draft.put("engine.sequence_s", sequence_s, source)
    draft.put("engine.slots", config.worker.max_num_seqs, runs[0].said("worker.max_num_seqs"))
    draft.put("engine.gpus", config.worker.tensor_parallel_size, runs[0].said("worker.engine_args"))


def _pace(run: Run) -> Pace:
    rollout, fetch_s = run.config.rollout, _fetch_s(_read_applied(run.directory))
    begun = beginnings(run.observed, rollout.max_in_flight * rollout.shares, fetch_s)
    pace = measure_pace(begun, run.config.worker.max_num_seqs)
    if pace is None:
        raise RunError(f"run {run.config.name!r} is too short to say how fast its engines are; let it do more steps")
    return pace


def _fit_pace(paces: Sequence[Pace]) -> tuple[float, float]:
    """Seconds of a decoding step without sequences, and for each of them."""
    sequences, steps_s = np.array([each.sequences for each in paces]), np.array([each.step_s for each in paces])
    if np.ptp(sequences) > _ALIKE * sequences.mean():
        sequence_s, step_s = np.polyfit(sequences, steps_s, 1)
        if sequence_s > 0 and step_s > 0:
            return float(step_s), float(sequence_s)
    return float(steps_s.mean()), 0.0


def _add_learner(draft: _Draft, observed: Observed) -> None:
    steps = [step for step in observed.steady_steps() if {"seconds_train", "tokens"} <= step.metrics.keys()]
    if not steps:
        said_by = observed.newest("the ledger")
        raise RunError(f"{said_by} has no steps that say how long they took; let the run do at least two steps")
    ranks = observed.start.numerics.ranks if observed.start and observed.start.numerics else 1
    ledger = observed.newest("ledger")
    fixed_s, token_s, how = _fit_step(steps, ledger)
    draft.put("learner.fixed_s", fixed_s, how)
    draft.put("learner.token_s", token_s * ranks, f"{how}, times {ranks} ranks")
    publish = [step.metrics["seconds_publish"] for step in steps if "seconds_publish" in step.metrics]
    if publish:
        draft.put("learner.publish_s", median(publish), f"{ledger}: median of {len(publish)} steps")


def _fit_step(steps: Sequence[StepEntry], ledger: str) -> tuple[float, float, str]:
    """Seconds of a step that do not depend on its tokens, seconds for each of them, and how that was found."""
    tokens = np.array([step.metrics["tokens"] for step in steps])
    seconds = np.array([step.metrics["seconds_train"] for step in steps])
    how = f"{ledger}: seconds_train over tokens of {len(steps)} steps"
    if len(steps) > 2 and tokens.std() > _ALIKE * tokens.mean():
        token_s, fixed_s = np.polyfit(tokens, seconds, 1)
        if token_s >= 0 and fixed_s >= 0:
            return float(fixed_s), float(token_s), how
    return 0.0, float(seconds.sum() / tokens.sum()), f"{how}; all of it charged to tokens"


def _add_weights(draft: _Draft, directory: Path | None) -> None:
    applied = _read_applied(directory)
    if applied:  # or else the defaults, no time at all
        said = f"logs of workers: median of {len(applied)} versions"
        draft.put("weights.fetch_s", _fetch_s(applied), said)
        draft.put("weights.pause_s", median(each.get("pause_s", 0.0) for each in applied), said)


def _fetch_s(applied: Sequence[Mapping[str, float]]) -> float:
    """From an announcement until the pause for it; 0 where no worker says."""
    return median(sum(each.get(key, 0.0) for key in _BEFORE_PAUSE) for each in applied) if applied else 0.0


def _read_applied(directory: Path | None) -> list[dict[str, float]]:
    """Seconds of every version that was loaded while requests were under way, by name."""
    found: list[dict[str, float]] = []
    for file in sorted((directory / "logs").glob("worker*.log")) if directory else ():
        lines = _APPLIED.findall(file.read_text(errors="replace"))
        found += [{name: float(value) for name, value in _SECONDS.findall(line)} for line in lines if "=True" in line]
    return found


def _add_log(draft: _Draft, run: Run) -> None:
    late_s = [max(0.0, each.read_s - each.end_s) for each in run.observed.answered]
    log = run.observed.newest("trajectories")
    draft.put("log.latency_s", median(late_s), f"{log}: median from the last token to the record")
    places = run.config.rollout.max_in_flight * run.config.rollout.shares
    draft.put("log.max_in_flight", places, run.said("rollout.max_in_flight × rollout.shares"))
    draft.sources |= {"log.share_token_s": "not of this run: 1,067 groups of 512 tokens a second, docs/generation.md"}
