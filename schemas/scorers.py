"""A reward model or a critic that is trained from the log beside the learner: the section ``scorer``."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.sections import Positive, Section

ScorerKind = Literal["reward", "critic"]


class ScorerConfig(Section):
    """What ``asyncflow learn-scorer`` trains. What is not said here is that of ``learner`` and ``model``."""

    kind: ScorerKind = "reward"
    """``reward`` scores whole answers, learned from pairs of a group; ``critic`` gives each token the reward that is
    still to be expected."""
    root: str = "scorer"
    """Where its checkpoints and, at the end, its model are written: a path of its own for each scorer."""
    steps: Positive | None = None
    """Optimizer steps after which it ends; null for none."""
    until_end_of_log: bool = False
    """Whether it ends when it has read what lay in the log at its start."""
    groups_per_step: Positive = 16
    """Groups that contribute to one optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Of AdamW, after the warm-up of ``learner.warmup_steps``."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With ``critic``: what a reward is worth one token earlier."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the groups that is not trained; chosen by a hash of their ids, so that it is always the same ones."""
    held_out_groups: Positive = 128
    """So many of them, the newest ones, are scored for a report."""
    report_every: Positive = 10
    """Steps from one report to the next."""
