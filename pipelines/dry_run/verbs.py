"""What each verb that belongs to a run brings and needs."""

from dataclasses import dataclass
from typing import Final

from schemas.config import RunConfig

STACK: Final = ("up", "demo")
"""Verbs that start everything on this machine, their broker too."""


@dataclass(frozen=True, slots=True)
class Needs:
    """One verb."""

    brings: str
    """What would run; ``{config…}`` is filled in."""
    topics: tuple[str, ...] = ()
    """Without which it does not work, by their names after the run's."""
    ports: tuple[str, ...] = ()
    """Keys of the ports that it listens on."""
    model: bool = False
    """Whether it reads the model's directory."""
    engine: bool = False
    """Whether it holds an engine: weights, keys and values."""
    learner: bool = False
    """Whether it holds a learner: weights, gradients, optimizer."""
    store: bool = False
    """Whether it writes weight versions and checkpoints of the run."""
    arithmetic: bool = False
    """Whether the sizes of steps and groups concern it."""

    files: tuple[str, ...] = ()
    """Beginnings of keys that name files and modules which it reads."""

    def describe(self, config: RunConfig) -> str:
        """What would run."""
        return self.brings.format(config=config)

    def asks_broker(self, config: RunConfig) -> bool:
        """Whether it talks to Kafka."""
        return bool(self.topics) and not (self.engine and not self.learner and config.worker.alone)


VERBS: Final = {
    "up": Needs("the whole stack", model=True, engine=True, learner=True, store=True, arithmetic=True, files=("",)),
    "worker": Needs(
        "a vLLM worker on http://{config.worker.host}:{config.worker.port}, for run {config.name}",
        ("weights", "workers"), ("worker.port",), model=True, engine=True,
    ),
    "rollout": Needs(
        "the rollout pipeline of run {config.name}, {config.rollout.shares} shares, which asks "
        "{config.rollout.workers} and with rollout.discover={config.rollout.discover} those that announce themselves",
        ("prompts", "admission", "workers", "trajectories", "pending", "dead-letters"), ("rollout.metrics_port",),
        model=True, arithmetic=True, files=("rewards.", "rollout."),
    ),
    "join-feedback": Needs(
        "the feedback pipeline of run {config.name}",
        ("pending", "feedback", "trajectories", "outcomes", "dead-letters"), ("feedback.metrics_port",),
        files=("feedback.",),
    ),
    "learn": Needs(
        "the learner of run {config.name}, {config.learner.steps} steps at ZeRO {config.learner.zero_stage}",
        ("prompts", "trajectories", "weights", "admission", "ledger", "dead-letters"),
        ("learner.metrics_port", "weights.port"), model=True, learner=True, store=True, arithmetic=True,
        files=("learner.",),
    ),
    "learn-scorer": Needs(
        "a scorer (scorer.kind {config.scorer.kind}) of the log of run {config.name}, written to {config.scorer.root}",
        ("trajectories",), model=True, learner=True,
    ),
    "gateway": Needs(
        "a gateway of run {config.name} on http://{config.gateway.host}:{config.gateway.port}",
        ("exchanges", "pending", "feedback", "outcomes", "workers"), ("gateway.port",), model=True,
        files=("feedback.",),
    ),
    "evaluate": Needs(
        "an evaluator of run {config.name}, every {config.evaluation.every} versions",
        ("weights", "workers", "evals"), model=True, files=("rewards.", "rollout."),
    ),
    "curriculum": Needs(
        "a curriculum that writes prompts to run {config.name}", ("prompts", "trajectories", "admission", "ledger")
    ),
    "submit": Needs("nothing that stays: prompts are written to run {config.name}", ("prompts",)),
}  # fmt: skip
