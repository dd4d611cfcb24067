"""Advantages, running baselines and what length costs, against numpy."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.objectives import ObjectiveConfig
from tests.support.samples import group
from trainers import advantages as module
from trainers.advantages import Advantages, has_variance, is_known
from trainers.shaping import overlong_share, shaped

FIRST = [1.0, None, 0.0, 0.0, 3.0]
SECOND = [0.5, 0.25]
KNOWN = [np.array([1.0, 0.0, 0.0, 3.0]), np.array([0.5, 0.25])]


def samples(rewards, **changes):
    drawn = group(size=len(rewards))
    return [replace(sample, reward=reward, **changes) for sample, reward in zip(drawn, rewards, strict=True)]


def computed(advantage, *groups, **settings):
    return Advantages(ObjectiveConfig(advantage=advantage, **settings), 16).of_step(
        groups or [samples(FIRST), samples(SECOND)]
    )


def others_mean(known):
    return np.array([np.delete(known, place).mean() for place in range(len(known))])


CENTRED = [known - known.mean() for known in KNOWN]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("group_normalised", [c / (np.sqrt((c**2).mean()) + 1e-6) for c in CENTRED]),
        ("mean_only", CENTRED),
        ("rloo", [known - others_mean(known) for known in KNOWN]),
        ("batch_normalised", [c / (np.concatenate(CENTRED).std() + 1e-6) for c in CENTRED]),
    ],
)
def test_advantages_are_those_of_numpy_and_nulls_stay_null(advantage, expected):
    first, second = computed(advantage)
    assert first.pop(1) is None
    np.testing.assert_allclose(first, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(second, expected[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce++", "gspo"])
def test_group_without_a_reward_and_group_of_one_give_no_number_that_is_not_finite(name):
    found = Advantages(ObjectiveConfig(name=name), 16).of_step([samples([None, None]), samples([2.0])])
    assert found == [[None, None], [0.0]]


def test_running_baseline_is_that_of_before_the_step_and_one_for_each_task():
    run = Advantages(ObjectiveConfig(advantage="running_baseline", baseline_momentum=0.75), 16, {"sums": 0.5})
    step = [samples([1.0], task="sums"), samples([0.0], task="sums"), samples([3.0, None], task="new")]
    assert run.of_step(step) == [[0.5], [-0.5], [0.0, None]]
    assert run.of_step(step) == run.of_step(step), "computing alone moves nothing"
    run.learn(step)
    assert run.baselines == {"sums": 0.5, "new": 3.0}
    run.learn([samples([1.0], task="sums")])
    assert run.baselines == {"sums": 0.75 * 0.5 + 0.25, "new": 3.0}
    assert run.of_step([samples([1.0], task="new")]) == [[-2.0]]


def test_baselines_are_kept_only_where_they_are_used_and_not_without_end(monkeypatch):
    run = Advantages(ObjectiveConfig(), 16)
    run.learn([samples([1.0])])
    assert run.baselines == {}
    monkeypatch.setattr(module, "_MOST_TASKS", 2)
    run = Advantages(ObjectiveConfig(advantage="running_baseline"), 16)
    run.learn([samples([1.0], task=task) for task in ("c", "a", "b")])
    assert sorted(run.baselines) == ["a", "b"]


def test_length_is_paid_for_before_groups_are_compared():
    short, long = samples([1.0, 1.0])
    long = replace(long, response_token_ids=(5,) * 12)
    ((first, second),) = computed("mean_only", [replace(short, response_token_ids=(5,) * 4), long], length_penalty=0.5)
    assert (first, second) == (0.125, -0.125)


@pytest.mark.parametrize(("tokens", "expected"), [(1, 0.0), (12, 0.0), (13, 0.25), (15, 0.75), (16, 1.0), (40, 1.0)])
def test_overlong_share_rises_over_the_buffer(tokens, expected):
    assert overlong_share(tokens, 4, 16) == expected
    assert overlong_share(tokens, 0, 16) == 0.0


def test_what_length_costs_is_taken_off_a_known_reward():
    config = ObjectiveConfig(length_penalty=0.1, overlong_buffer_tokens=8, overlong_penalty=2.0)
    sample = replace(samples([1.0])[0], response_token_ids=(5,) * 12)
    assert shaped(sample, config, 16) == pytest.approx(1.0 - 0.1 * 12 / 16 - 2.0 * 0.5)
    assert shaped(replace(sample, reward=None), config, 16) is None
    assert shaped(sample, ObjectiveConfig(), 16) == 1.0


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1.0, 0.0], True), ([1.0, 1.0], False), ([1.0, None], False), ([None, None], False), ([None, 0.5, 1.0], True)],
)
def test_variance_needs_two_known_rewards_that_differ(rewards, expected):
    assert has_variance(rewards) is expected
    assert is_known(rewards) is (rewards != [None, None])


def of(purpose, rewards, **changes):
    return samples(rewards, purpose=purpose, **changes)


WITHIN = ["group_normalised", "mean_only", "rloo", "batch_normalised"]


@pytest.mark.parametrize("advantage", WITHIN)
def test_feedback_without_variance_is_compared_with_what_came_for_its_task(advantage):
    run = Advantages(ObjectiveConfig(advantage=advantage), 16, {"sums": 0.25})
    step = [samples(SECOND), of("feedback", [1.0]), of("feedback", [-1.0, None, -1.0])]
    first, *others = run.of_step(step)
    assert first == run.of_step(step[:1])[0], "it changes nothing for the others"
    assert others == [[0.75], [-1.25, None, -1.25]]


@pytest.mark.parametrize("advantage", WITHIN)
def test_feedback_with_variance_is_as_configured(advantage):
    given = [of("feedback", FIRST), of("feedback", SECOND)]
    assert computed(advantage, *given) == computed(advantage)


def test_feedback_on_a_new_task_is_compared_with_the_step_and_with_the_past_from_then_on():
    run = Advantages(ObjectiveConfig(baseline_momentum=0.75), 16)
    step = [of("feedback", [1.0], task="chat"), of("feedback", [-1.0], task="chat"), samples([4.0, 0.0], task="chat")]
    assert run.of_step(step)[:2] == [[1.0], [-1.0]]
    run.learn([*step[:1], *step[2:]])
    assert run.baselines == {"chat": 1.0}, "computed rewards move it only where they are compared with it"
    run.learn(step[1:2])
    assert run.baselines == {"chat": 0.75 * 1.0 + 0.25 * -1.0}
    assert run.of_step(step[:1]) == [[0.5]]


@pytest.mark.parametrize("advantage", [*WITHIN, "running_baseline"])
def test_what_is_no_reward_of_an_answer_stays_as_it_is_and_moves_nothing(advantage):
    run = Advantages(ObjectiveConfig(advantage=advantage, length_penalty=0.5), 16, {"sums": 0.5})
    step = [of("correction", [-2.0]), of("demonstration", [0.25]), samples([1.0, 0.0], task="other")]
    assert run.of_step(step)[:2] == [[-2.0], [0.25]]
    alone = Advantages(ObjectiveConfig(advantage=advantage, length_penalty=0.5), 16, {"sums": 0.5})
    assert run.of_step(step)[2:] == alone.of_step(step[2:]), "nor does it count for the deviation of the step"
    run.learn(step[:2])
    assert run.baselines == {"sums": 0.5}


def test_with_values_feedback_is_given_as_it_is_shaped_and_the_means_move_all_the_same():
    run = Advantages(ObjectiveConfig(name="ppo", length_penalty=0.5), 6)
    step = [of("feedback", [1.0]), of("correction", [-2.0])]
    assert run.of_step(step) == [[0.75], [-2.0]]
    run.learn(step)
    assert run.baselines == {"sums": 0.75}


def test_with_running_baselines_feedback_is_one_of_all():
    run = Advantages(ObjectiveConfig(advantage="running_baseline", baseline_momentum=0.5), 16, {"sums": 0.5})
    step = [samples([1.0]), of("feedback", [-1.0, 1.0])]
    assert run.of_step(step) == [[0.5], [-1.5, 0.5]]
    run.learn(step)
    assert run.baselines == {"sums": 0.5 * 0.5 + 0.5 * (1 / 3)}
