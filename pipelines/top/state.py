"""What a look at a run finds: plain values, so that what is said of them can be tested on literals.

Instants are seconds since 1970, ages are seconds, and null means that nobody tells.
"""

from dataclasses import dataclass, field
from typing import Literal

WorkerState = Literal["up", "leaving", "silent"]
LearnerState = Literal["starting", "waiting", "training"]
Process = Literal["worker", "rollout", "learner", "join-feedback", "gateway", "scorer", "unknown"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the flow, in groups. Example: ``Stage("trained", 96, 0.8)``."""

    name: str
    total: int
    """So far."""
    per_s: float | None = None
    """Over the last 15 seconds."""
    waiting: int | None = None
    """Groups that have come so far and go on from here next; null where the way ends."""
    oldest_s: float | None = None
    """Age of the one that has waited longest."""
    lag_records: int | None = None
    """Records of the topic that its reader has not consumed."""


@dataclass(frozen=True, slots=True)
class Learner:
    """The surviving line of the ledger, and what is announced beside it."""

    generation: int = 0
    """Starts of the learner; 0 before the first."""
    started_at: float | None = None
    """Of the newest start."""
    continues: int = 0
    """The step from which the newest start goes on."""
    lost_steps: int = 0
    """Steps of the start before that the newest one does again: it died after its last checkpoint."""
    step: int = 0
    step_at: float | None = None
    """When the newest step was made."""
    steps: int | None = None
    """How many it will make."""
    have: int = 0
    """Groups at hand for the next step; where the learner does not tell, those that no step has consumed, of which it
    will drop some."""
    state: LearnerState | None = None
    """What it does now; null where it does not tell."""
    need: int | None = None
    """Groups of a step."""
    version: int = 0
    """The newest announced weight version; 0 before the first."""
    version_at: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the newest step, see docs/metrics.md."""
    rewards: tuple[float, ...] = ()
    """Mean reward of the newest steps, oldest first."""
    staleness: dict[int, int] = field(default_factory=dict)
    """Trained groups of the newest 50 steps by the age of their oldest token, in updates."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Groups by reason."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One vLLM worker, by its announcements and its endpoint."""

    url: str
    state: WorkerState
    """``silent``: it announced itself and did not go on doing so."""
    version: int
    """The weight version that it serves."""
    heard_s: float
    """Since its newest announcement."""
    slots: int
    """Sequences that its engine computes at once."""
    running: int | None = None
    """Sequences that it computes now."""
    queued: int | None = None
    """Sequences that wait inside it."""
    tokens_per_s: float | None = None
    refused: int | None = None
    """Weight versions that it did not load."""


@dataclass(frozen=True, slots=True)
class Engine:
    """All workers together, as the rollout pipeline uses them."""

    occupancy: float | None = None
    """Filled share of ``rollout.max_in_flight``, or of the workers' sequences where the pipeline does not tell."""
    empty: dict[str, float] = field(default_factory=dict)
    """Share of the places that were empty, by reason: see ``transforms.generation.occupancy``."""
    tokens_per_s: float | None = None
    workers_up: int | None = None
    left_alone: tuple[str, ...] = ()
    """Judges and reward models that are not asked for a while, because they failed."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Prometheus endpoint."""

    process: Process
    url: str
    silent_s: float | None
    """Since its last answer, 0 if it answered just now; null if it never has."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One answer as a person would read it."""

    group: str
    prompt: str
    answer: str
    reward: float | None
    versions: tuple[int, int]
    """Oldest and newest weight version among its tokens."""
    step: int
    """Steps that the learner had done when the answer was read."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment."""

    run: str
    at: float
    broker: str
    """Its address."""
    broker_silent_s: float = 0.0
    """Since its last answer; 0 if it answers."""
    is_live: bool = True
    """False for the log of a run that has ended, served for this look."""
    stages: tuple[Stage, ...] = ()
    """``prompts``, ``in flight``, ``trajectories``, ``trained``, ``dropped``, ``dead letters``."""
    learner: Learner = Learner()
    workers: tuple[Worker, ...] = ()
    engine: Engine = Engine()
    endpoints: tuple[Endpoint, ...] = ()
    dead_letters: dict[str, int] = field(default_factory=dict)
    """By reason."""
    samples: tuple[ShownSample, ...] = ()
    """The newest few, oldest first."""

    def stage(self, name: str) -> Stage:
        """The stage of that name; an empty one if nothing is known of it."""
        return next((stage for stage in self.stages if stage.name == name), Stage(name, 0))
