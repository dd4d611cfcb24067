"""How a run is evaluated while it trains: the section ``evaluation`` of the configuration."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.limits import MAX_GROUP_SIZE
from schemas.sections import Positive, Section


class EvaluationConfig(Section):
    """Held-out prompts, asked again and again."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "held-out"
    """Of this evaluation. Two that follow one run at once need two names."""
    every: Positive = 1
    """Weight versions from one evaluation to the next. The last version of a run is evaluated in any case."""
    samples: Annotated[int, Field(ge=0, le=MAX_GROUP_SIZE)] = 0
    """Answers a prompt that are drawn besides the greedy one, for pass@k; 0 for none."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the answers that are drawn."""
    pass_at: tuple[Positive, ...] = (1,)
    """The k of pass@k; each at most ``samples``."""
    success_reward: float = 1.0
    """An answer passes with this reward or a higher one."""
    max_tokens: Positive | None = None
    """Longest answer; null for what the prompt says, else ``rollout.sampling.max_tokens``."""
    concurrency: Positive = 32
    """Prompts that are asked at once. Workers that a run trains with answer its rollouts beside them."""
    patience_s: Annotated[float, Field(gt=0)] = 1800.0
    """How long the evaluation of one version may take before it is given up."""
    worker_run: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,99})?$")] = ""
    """The ``--name`` of workers that serve evaluations alone and are given exactly the version that is evaluated;
    empty asks the workers of the run, which may take up newer weights in the middle of it."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.samples and (most := max(self.pass_at, default=0)) > self.samples:
            raise ValueError(
                f"pass_at holds {most}, but samples = {self.samples}: pass@k needs k answers a prompt or more; "
                f"give samples = {most} or more, or a smaller k"
            )
        return self
