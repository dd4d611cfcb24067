"""The objective's configuration: what names stand for, and which contradictions are named."""

import pytest

from schemas.config import RunConfig, validate
from schemas.errors import ConfigError
from schemas.objectives import Bounds, ObjectiveConfig, Recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "gpo"}, "learner.objective.name = 'gpo': Input should be 'grpo'"),
        ({"name": "rloo", "clip_high": 0.3},
         'clip_low or clip_high = 0.3 with name = "rloo", which has no ratio to clip'),
        ({"correction_high": 3.0}, "correction_high = 3.0, but correction = 'none' has no such bound"),
        ({"correction": "truncated_token", "correction_low": 0.1},
         "correction_low = 0.1, but correction = 'truncated_token' has no such bound"),
        ({"correction": "icepop", "correction_low": 6.0}, "correction_low = 6.0 is not below correction_high = 5.0"),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1"}, 'kl_estimator = "k1" with kl_place = "loss" teaches nothing'),
        ({"overlong_buffer_tokens": 256},
         "learner.objective.overlong_buffer_tokens = 256 is not below the longest answer of 256 tokens"),
        ({"name": "ppo", "advantage": "rloo"}, "advantage = 'rloo' with name = 'ppo'"),
        ({"advantage": "gae"}, "advantage = 'gae' with name = 'grpo': \"ppo\" has \"gae\" and nothing else has it"),
        ({"gae_lambda": 0.9}, "gae_lambda = 0.9 with name = 'grpo', which has no value head: unset it"),
        ({"clip_hi": 0.1}, "unknown key learner.objective.clip_hi; did you mean clip_high?"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named(settings, words):
    with pytest.raises(ConfigError) as caught:
        validate({"learner": {"objective": settings}}, "file.toml")
    assert words in str(caught.value)


def test_a_name_stands_for_what_is_not_said():
    assert ObjectiveConfig().recipe == Recipe(0.2, 0.2, "token_mean", "group_normalised")
    assert ObjectiveConfig(clip_high=0.28).recipe == Recipe(0.2, 0.28, "token_mean", "group_normalised")
    assert ObjectiveConfig(name="gspo").recipe == Recipe(3e-4, 4e-4, "sequence_mean", "group_normalised")
    assert [ObjectiveConfig(name=name).recipe.needs_variance for name in ("grpo", "ppo")] == [True, False]
    assert not ObjectiveConfig(advantage="running_baseline").recipe.needs_variance
    own = ObjectiveConfig(name="dr_grpo", aggregation="token_mean", advantage="rloo")
    assert own.recipe == Recipe(0.2, 0.2, "token_mean", "rloo")


def test_a_correction_has_the_bounds_of_its_name_or_those_given():
    assert ObjectiveConfig().bounds == Bounds(None, None)
    assert ObjectiveConfig(correction="icepop", correction_high=3.0).bounds == Bounds(0.5, 3.0)
    assert ObjectiveConfig(correction="masked_token", correction_high=3.0).bounds == Bounds(None, 3.0)


def test_the_longest_answer_is_that_of_sampling_unless_it_is_said():
    assert RunConfig().length_tokens == RunConfig().rollout.sampling.max_tokens
    assert validate({"learner": {"objective": {"length_tokens": 99}}}, "test").length_tokens == 99


def test_where_the_clip_was_before_is_an_unknown_key():
    with pytest.raises(ConfigError, match=r"unknown key learner\.clip_low"):
        validate({"learner": {"clip_low": 0.2}}, "test")


def test_every_update_has_a_group_of_its_own():
    with pytest.raises(ConfigError, match=r"minibatches = 9 exceeds groups_per_step = 8"):
        validate({"learner": {"minibatches": 9}}, "test")
