"""What the learner maximises: the section ``learner.objective``.

    rewards ──► shaped ──► advantages ──┐
    logprobs ──► correction ──► objective ──► + KL - entropy ──► aggregated over the tokens of a step

A name chooses how a token enters (the form of the objective), and with it the clip, the aggregation and the
advantage of its paper; each of them can be set by itself. ``docs/objectives.md`` has the formulas.
"""

from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from schemas.sections import Positive, Section

ObjectiveName = Literal["grpo", "dr_grpo", "rloo", "reinforce++", "cispo", "gspo", "ppo"]
Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
Advantage = Literal["group_normalised", "mean_only", "rloo", "batch_normalised", "running_baseline", "gae"]
CorrectionName = Literal[
    "none", "decoupled", "truncated_token", "truncated_sequence", "masked_token", "masked_sequence", "icepop",
    "geometric_mask",
]  # fmt: skip
KlEstimator = Literal["k1", "k2", "k3"]


class Recipe(NamedTuple):
    """What an objective's name stands for, or what is configured instead."""

    clip_low: float
    """0 where the form clips nothing."""
    clip_high: float
    """0 where the form clips nothing."""
    aggregation: Aggregation
    advantage: Advantage

    @property
    def needs_variance(self) -> bool:
        """Whether a group teaches by the differences of its rewards only; otherwise one known reward does."""
        return self.advantage not in ("running_baseline", "gae")


_RECIPES: Final[dict[ObjectiveName, Recipe]] = {
    "grpo": Recipe(0.2, 0.2, "token_mean", "group_normalised"),
    "dr_grpo": Recipe(0.2, 0.2, "constant_length", "mean_only"),
    "rloo": Recipe(0.0, 0.0, "constant_length", "rloo"),
    "reinforce++": Recipe(0.2, 0.2, "token_mean", "batch_normalised"),
    "cispo": Recipe(1.0, 5.0, "token_mean", "group_normalised"),
    "gspo": Recipe(3e-4, 4e-4, "sequence_mean", "group_normalised"),
    "ppo": Recipe(0.2, 0.2, "token_mean", "gae"),
}


_OF_VALUES: Final = (
    "gamma", "gae_lambda", "normalise_advantages", "value_coefficient", "value_clip", "fresh_value_head",
)  # fmt: skip
"""What only an objective with a value head has."""


class Bounds(NamedTuple):
    """Between which ratios of learner to behaviour policy a correction lets a token or sequence count."""

    low: float | None
    """Null where the correction has no lower bound."""
    high: float | None
    """Null where the correction has no upper bound."""


_BOUNDS: Final[dict[CorrectionName, Bounds]] = {
    "none": Bounds(None, None),
    "decoupled": Bounds(None, None),
    "truncated_token": Bounds(None, 2.0),
    "truncated_sequence": Bounds(None, 2.0),
    "masked_token": Bounds(None, 2.0),
    "masked_sequence": Bounds(None, 2.0),
    "icepop": Bounds(0.5, 5.0),
    "geometric_mask": Bounds(0.9, 1.1),
}


class ObjectiveConfig(Section):
    """What the learner maximises."""

    name: ObjectiveName = "grpo"
    """``grpo``, ``dr_grpo`` and ``reinforce++`` clip the ratio of each token (PPO), ``gspo`` that of the sequence,
    ``cispo`` clips the ratio as a weight, ``rloo`` has no ratio; ``ppo`` clips as ``grpo`` does and trains a value
    head beside the policy. It also chooses what is null below."""
    clip_low: Annotated[float, Field(gt=0, le=1)] | None = None
    """The ratio is clipped below 1 - clip_low. Null: 0.2; 3e-4 with ``gspo``, 1 (never) with ``cispo``."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """The ratio is clipped above 1 + clip_high. Null: 0.2; 4e-4 with ``gspo``, 5 with ``cispo``."""
    aggregation: Aggregation | None = None
    """The loss of a step is the mean over its trained tokens (``token_mean``), the mean over sequences of the mean
    over their tokens (``sequence_mean``), or the sum over tokens by the number of sequences and ``length_tokens``
    (``constant_length``). Null: the first; the second with ``gspo``, the third with ``dr_grpo`` and ``rloo``."""
    advantage: Advantage | None = None
    """The reward less its group's mean, by the group's deviation (``group_normalised``), as it is (``mean_only``),
    or by the deviation of the whole step (``batch_normalised``); less the mean of the others of the group
    (``rloo``); less a running mean of its task (``running_baseline``, for groups of one). ``ppo`` always has
    ``gae``, token by token from the value head, and only ``ppo`` has it. Null: the first; ``mean_only`` with
    ``dr_grpo``, ``rloo`` with ``rloo``, ``batch_normalised`` with ``reinforce++``."""
    baseline_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """What the running mean of a task keeps of itself in a step."""
    length_tokens: Positive | None = None
    """The longest answer, for ``constant_length`` and for what depends on an answer's length; null for
    ``rollout.sampling.max_tokens``."""
    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """What an answer of ``length_tokens`` loses of its reward; shorter ones in proportion."""
    overlong_buffer_tokens: Annotated[int, Field(ge=0)] = 0
    """Over the last so many tokens before ``length_tokens`` the reward falls by up to ``overlong_penalty``;
    0 for never."""
    overlong_penalty: Annotated[float, Field(gt=0)] = 1.0
    """What an answer of ``length_tokens`` loses of its reward, see ``overlong_buffer_tokens``."""
    correction: CorrectionName = "none"
    """For samples of an older policy or another engine: ``none`` takes the objective's ratio to the policy that
    sampled; ``geometric_mask`` does too, and leaves out sequences whose mean ratio is out of bounds. The others
    take it to the policy before the update, and weigh with the ratio of that to the one that sampled: in full
    (``decoupled``), at most ``correction_high`` of a token or of a sequence (``truncated_…``), or not at all if it
    is out of bounds (``masked_…``, and with both bounds ``icepop``)."""
    correction_low: Annotated[float, Field(ge=0)] | None = None
    """Least ratio that counts. Null: 0.5 with ``icepop``, 0.9 with ``geometric_mask``; the others have none."""
    correction_high: Annotated[float, Field(gt=0)] | None = None
    """Largest ratio that counts. Null: 2; 5 with ``icepop``, 1.1 with ``geometric_mask``."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Of the divergence from the reference policy; 0 for none, and then no reference model is loaded."""
    kl_estimator: KlEstimator = "k3"
    """Per token, with d = learner's less reference's logprob: d (``k1``), d²/2 (``k2``), exp(-d) + d - 1 (``k3``)."""
    kl_place: Literal["loss", "reward"] = "loss"
    """Whether it is added to the loss, or taken off each token's reward."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Of the policy's entropy, which is added to the objective; 0 for none."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With ``ppo``: what a reward is worth one token earlier."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """With ``ppo``: how far advantages trust rewards (1) rather than the value head (0)."""
    normalise_advantages: bool = True
    """With ``ppo``: whether a step's advantages are made to have mean 0 and deviation 1 over its tokens."""
    value_coefficient: Annotated[float, Field(gt=0)] = 0.1
    """With ``ppo``: of the loss of the value head."""
    value_clip: Annotated[float, Field(ge=0)] = 0.2
    """With ``ppo``: a value gains nothing further than this from where it was before the update; 0 for no bound."""
    fresh_value_head: bool = False
    """With ``ppo``: a checkpoint without a value head, made with another objective, is gone on from with a new one."""

    @property
    def recipe(self) -> Recipe:
        """What is configured, completed by what the name stands for."""
        own = {name: getattr(self, name) for name in Recipe._fields if getattr(self, name) is not None}
        return _RECIPES[self.name]._replace(**own)

    @property
    def bounds(self) -> Bounds:
        """What is configured, completed by what the correction's name stands for."""
        given = {"low": self.correction_low, "high": self.correction_high}
        return _BOUNDS[self.correction]._replace(**{name: bound for name, bound in given.items() if bound is not None})

    @model_validator(mode="after")
    def _clips_something(self) -> Self:
        given = self.clip_low if self.clip_low is not None else self.clip_high
        if self.name == "rloo" and given is not None:
            raise ValueError(
                f'clip_low or clip_high = {given} with name = "rloo", which has no ratio to clip: unset it'
            )
        return self

    @model_validator(mode="after")
    def _values_belong(self) -> Self:
        if (self.recipe.advantage == "gae") != (self.name == "ppo"):
            raise ValueError(
                f'advantage = {self.recipe.advantage!r} with name = {self.name!r}: "ppo" has "gae" and nothing else '
                "has it; unset it, or change name"
            )
        for name in _OF_VALUES if self.name != "ppo" else ():
            given, default = getattr(self, name), type(self).model_fields[name].default
            if given != default:
                raise ValueError(f"{name} = {given} with name = {self.name!r}, which has no value head: unset it")
        return self

    @model_validator(mode="after")
    def _bounds_belong(self) -> Self:
        known = _BOUNDS[self.correction]
        for name, bound, default in (
            ("correction_low", self.correction_low, known.low), ("correction_high", self.correction_high, known.high),
        ):  # fmt: skip
            if bound is not None and default is None:
                raise ValueError(f"{name} = {bound}, but correction = {self.correction!r} has no such bound: unset it")
        low, high = self.bounds
        if low is not None and high is not None and low >= high:
            raise ValueError(f"correction_low = {low} is not below correction_high = {high}: nothing would be trained")
        return self

    @model_validator(mode="after")
    def _kl_teaches(self) -> Self:
        if self.kl_coefficient and (self.kl_estimator, self.kl_place) == ("k1", "loss"):
            raise ValueError(
                'kl_estimator = "k1" with kl_place = "loss" teaches nothing: its gradient is 0 in the mean; '
                'take "k2" or "k3", or kl_place = "reward"'
            )
        return self
