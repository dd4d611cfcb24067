"""Figures of an evaluation, against what one counts on one's fingers."""

from itertools import combinations
from math import sqrt
from statistics import fmean

import pytest

from pipelines.evaluation.ask import Answers
from pipelines.evaluation.figures import Asked, mean_rewards, pass_at_k, passes
from schemas.config import EvaluationConfig
from schemas.evals import EvalResult, best_of
from schemas.prompts import Prompt, RewardSpec

DIGEST, OTHER = "a" * 64, "b" * 64
ASKED = Asked("held-out", DIGEST, 0.0)


def answers(*rewards, task="sums", versions=(3,)):
    prompt = Prompt(text="1+1", task=task, reward=RewardSpec(name="last_number", args={"answer": 2}))
    return Answers(prompt, rewards, frozenset(versions) if rewards else frozenset())


def result(version, value, **more):
    values = {"task": "sums", "metric": "mean_reward", "samples": 4, "temperature": 0, "version_max": version,
              "prompts_sha256": DIGEST}  # fmt: skip
    return EvalResult(version=version, value=value, **values | more)


def figures(results):
    return {(each.metric, each.task): each.value for each in results}


@pytest.mark.parametrize(
    ("n", "c", "k"), [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_with_one_that_passes(n, c, k):
    chosen = [any(index < c for index in choice) for choice in combinations(range(n), k)]
    assert pass_at_k(n, c, k) == pytest.approx(fmean(chosen), abs=1e-12)


def test_pass_at_k_stays_a_probability_for_many_answers():
    assert pass_at_k(1024, 1, 512) == pytest.approx(0.5)
    assert 0 < pass_at_k(1024, 1, 1) < pass_at_k(1024, 1, 2) < 1


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_refuses_what_it_is_not_defined_for(n, c, k):
    with pytest.raises(ValueError, match=rf"pass@{k} of {n} answers"):
        pass_at_k(n, c, k)


def test_null_rewards_and_missing_answers_are_counted_and_take_part_in_no_mean():
    (found,) = mean_rewards([answers(1.0), answers(0.0), answers(1.0), answers(None), answers()], ASKED)
    assert found.value == pytest.approx(2 / 3)
    assert (found.samples, found.prompts, found.null_rewards, found.unanswered) == (3, 5, 1, 1)
    assert found.standard_error == pytest.approx(sqrt(1 / 3) / sqrt(3))


def test_several_tasks_give_a_result_over_all_first_and_one_each():
    found = mean_rewards([answers(1.0, task="b"), answers(0.0, task="a"), answers(1.0, task="a")], ASKED)
    assert [each.task for each in found] == ["*", "a", "b"]
    assert [each.value for each in found] == pytest.approx([2 / 3, 0.5, 1.0])


def test_nothing_that_was_scored_gives_no_figure():
    assert mean_rewards([answers(None), answers()], ASKED) == []


def test_answers_of_two_versions_are_said_to_be():
    (found,) = mean_rewards([answers(1.0, versions=(3,)), answers(1.0, versions=(3, 4))], ASKED)
    assert (found.version, found.version_max, found.is_exact) == (3, 4, False)


def test_pass_at_k_over_prompts_leaves_out_those_with_fewer_scored_answers():
    config = EvaluationConfig(samples=4, pass_at=(1, 4), success_reward=0.5)
    drawn = [answers(0.5, 0.2, 0.0, 0.0), answers(1.0, 1.0, None, 1.0)]
    found = figures(passes(drawn, Asked("held-out", DIGEST, 1.0), config))
    assert found == {("pass@1", "sums"): pytest.approx((0.25 + 1) / 2), ("pass@4", "sums"): 1.0}
    (four,) = (each for each in passes(drawn, ASKED, config) if each.metric == "pass@4")
    assert (four.samples, four.null_rewards) == (4, 1)


@pytest.mark.parametrize(
    ("candidate", "wins"),
    [
        (result(5, 0.6), True),
        (result(5, 0.5), False),
        (result(5, 0.4), False),
        (result(5, 0.9, version_max=6), False),
        (result(5, 0.9, version_max=None), False),
        (result(5, 0.9, temperature=1), False),
        (result(5, 0.9, metric="pass@1"), False),
        (result(5, 0.9, samples=3), False),
        (result(5, 0.1, prompts_sha256=OTHER), True),
    ],
)
def test_the_best_is_beaten_by_a_higher_figure_of_one_version_on_all_that_was_scored(candidate, wins):
    assert candidate.beats(result(4, 0.5)) is wins
    assert candidate.marked(result(4, 0.5)).best is wins


def test_the_first_exact_result_is_the_best_so_far():
    assert result(1, 0.0).beats(None)
    assert not result(1, 0.0, version_max=2).beats(None)


def test_the_best_of_an_evaluation_is_what_it_marked_last():
    marked = [result(1, 0.1, best=True), result(2, 0.3, best=True), result(3, 0.2)]
    other = result(9, 0.9, best=True, evaluation="other")
    assert best_of([*marked, other], "held-out") == marked[1]
    assert best_of([other], "held-out") is None
