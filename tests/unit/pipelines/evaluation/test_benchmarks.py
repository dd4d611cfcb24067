"""The metrics of GLUE and SuperGLUE, against what one counts by hand."""

from math import sqrt

import pytest

from pipelines.evaluation.benchmarks import (
    BENCHMARKS,
    Figure,
    accuracy,
    all_right,
    f1,
    macro_f1,
    matthews,
    mean_score,
    measure,
    pearson,
    spearman,
)
from pipelines.tasks.draw import judged_by_people
from pipelines.tasks.family import Glue, Superglue
from pipelines.tasks.registry import find
from schemas.prompts import Prompt, RewardSpec
from tests.support.benchmarks import write_benchmarks

RIGHT = ["yes", "yes", "yes", "no", "no", "no"]
GIVEN = ["yes", "yes", "no", "yes", "no", None]


def test_accuracy_counts_an_answer_that_cannot_be_read_as_wrong():
    assert accuracy(GIVEN, RIGHT) == pytest.approx(3 / 6)


def test_f1_is_of_one_class():
    assert f1(GIVEN, RIGHT, "yes") == pytest.approx(2 * 2 / (3 + 3))
    assert f1(GIVEN, RIGHT, "no") == pytest.approx(2 * 1 / (2 + 3))
    assert f1(["no"], ["no"], "yes") == 0.0


def test_macro_f1_is_over_all_classes():
    assert macro_f1(GIVEN, RIGHT) == pytest.approx((2 / 3 + 2 / 5) / 2)
    assert macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([None], ["a"]) == 0.0


def test_matthews_is_the_correlation_of_two_classes():
    true_yes, true_no, false_yes, false_no = 3, 2, 1, 4
    given = ["yes"] * true_yes + ["no"] * true_no + ["yes"] * false_yes + ["no"] * false_no
    right = ["yes"] * true_yes + ["no"] * true_no + ["no"] * false_yes + ["yes"] * false_no
    expected = (3 * 2 - 1 * 4) / sqrt((3 + 1) * (3 + 4) * (2 + 1) * (2 + 4))
    assert matthews(given, right) == pytest.approx(expected)


def test_matthews_is_one_minus_one_or_nothing_at_the_ends():
    assert matthews(RIGHT, RIGHT) == pytest.approx(1)
    assert matthews(RIGHT[::-1], RIGHT) == pytest.approx(-1)
    assert matthews(["yes"] * 6, RIGHT) == matthews([None] * 6, RIGHT) == matthews(RIGHT, ["yes"] * 6) == 0.0


def test_matthews_takes_what_cannot_be_read_as_a_class_of_its_own():
    # 6 rows, 3 right; given 3 yes, 2 no, 1 neither; right 3 and 3
    expected = (3 * 6 - (3 * 3 + 2 * 3)) / sqrt((36 - (9 + 4 + 1)) * (36 - (9 + 9)))
    assert matthews(GIVEN, RIGHT) == pytest.approx(expected)


def test_correlations_are_of_values_and_of_ranks():
    given, right = [1.0, 2.0, 4.0], [1.0, 3.0, 2.0]
    assert pearson(given, right) == pytest.approx(1 / sqrt((14 / 3) * 2))
    assert spearman(given, right) == pytest.approx(1 - 6 * (0 + 1 + 1) / (3 * 8))
    assert spearman([1.0, 10.0, 100.0], [2.0, 2.5, 2.6]) == pytest.approx(1)
    assert pearson([3.0, 2.0], [0.0, 5.0]) == pytest.approx(-1)


def test_equal_numbers_share_their_ranks():
    # ranks 0.5, 0.5, 2 and 0, 1, 2: covariance 1.5, variances 1.5 and 2
    assert spearman([7.0, 7.0, 9.0], [1.0, 2.0, 3.0]) == pytest.approx(1.5 / sqrt(1.5 * 2))


def test_a_constant_correlates_with_nothing():
    assert pearson([2.5, 2.5], [0.0, 5.0]) == spearman([1.0, 2.0], [3.0, 3.0]) == 0.0


def test_a_question_is_right_if_all_its_answers_are():
    assert all_right(["yes", "no", "yes"], ["yes", "no", "no"], ["a", "a", "b"]) == pytest.approx(1 / 2)
    assert all_right(["yes", "no", "yes"], ["yes", "yes", "yes"], ["a", "a", "b"]) == pytest.approx(1 / 2)


def test_different_numbers_of_answers_are_refused():
    with pytest.raises(ValueError, match="zip"):
        accuracy(["yes"], RIGHT)


def label_prompts(task, *right, labels=("yes", "no")):
    return [
        Prompt(
            prompt_id=f"{task}/held_out/{number // 2}/{number % 2}",
            task=task,
            text="?",
            reward=RewardSpec(name="label", args={"answer": answer, "labels": list(labels)}),
        )
        for number, answer in enumerate(right)
    ]


def test_answers_are_read_as_the_reward_reads_them():
    prompts = label_prompts("rte", "yes", "yes", "no")
    assert measure("rte", prompts, ["It is Yes.", "yes or no", ""]) == {"accuracy": Figure(1 / 3, 2 / 3)}


def test_f1_of_paraphrases_is_high_for_one_who_always_says_yes():
    figures = measure("mrpc", label_prompts("mrpc", "yes", "yes", "no"), ["yes", "no", "no"])
    assert figures == {
        "accuracy": Figure(pytest.approx(2 / 3), pytest.approx(2 / 3)),
        "f1": Figure(pytest.approx(2 / 3), pytest.approx(4 / 5)),
    }


def test_commitment_bank_has_accuracy_and_macro_f1_of_three_classes():
    prompts = label_prompts("cb", "yes", "no", "maybe", "no", labels=("yes", "maybe", "no"))
    figures = measure("cb", prompts, ["yes", "no", "no", "no"])
    assert figures["accuracy"] == Figure(3 / 4, 2 / 4)
    assert figures["macro_f1"] == Figure(pytest.approx((1 + 4 / 5 + 0) / 3), pytest.approx((2 * 2 / 6) / 3))


def test_multirc_counts_answers_and_whole_questions():
    figures = measure("multirc", label_prompts("multirc", "yes", "no", "no", "no"), ["yes", "no", "yes", "no"])
    assert figures == {"f1a": Figure(pytest.approx(2 / 3), 0.0), "em": Figure(1 / 2, 1 / 2)}


def test_record_takes_the_best_of_the_right_names():
    reward = RewardSpec(name="span", args={"references": ["West Brom", "West Bromwich Albion"]})
    prompts = [Prompt(text="?", task="record", reward=reward)] * 3
    figures = measure("record", prompts, ["the west brom!", "Albion", ""])
    assert figures == {"f1": Figure(pytest.approx((1 + 2 / 4 + 0) / 3), None), "em": Figure(pytest.approx(1 / 3), None)}


def test_similarity_without_a_number_is_below_all():
    args = {"lowest": 0, "highest": 5}
    prompts = [
        Prompt(text="?", task="stsb", reward=RewardSpec(name="closeness", args=args | {"answer": answer}))
        for answer in (0, 2, 4)
    ]
    figures = measure("stsb", prompts, ["none", "1", "5"])  # -1, 1, 5 against 0, 2, 4
    assert figures["pearson"] == Figure(pytest.approx(12 / sqrt((56 / 3) * 8)), 0.0)
    assert figures["spearman"] == Figure(pytest.approx(1), 0.0)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_reach_the_top_of_every_metric(tmp_path, name):
    write_benchmarks(tmp_path)
    prompts = [prompt for split in ("train", "held_out") for prompt in find(name).prompts(tmp_path, split)]
    texts = [str(args.get("answer", args.get("references", [""])[0])) for args in (p.reward.args for p in prompts)]
    assert all(figure.value == pytest.approx(1) for figure in measure(name, prompts, texts).values())


def test_every_task_of_the_families_has_its_metrics():
    assert set(BENCHMARKS) == {member.name for member in (*Glue.members, *Superglue.members)}


def test_the_score_is_the_mean_over_tasks_of_their_metrics_mean():
    figures = {
        "rte": {"accuracy": Figure(0.6, 0.5)},
        "mrpc": {"accuracy": Figure(0.7, 0.6), "f1": Figure(0.9, 0.8)},
        "record": {"f1": Figure(0.2, None)},
    }
    assert mean_score(figures) == Figure(pytest.approx((0.6 + 0.8 + 0.2) / 3), pytest.approx((0.5 + 0.7) / 2))
    assert mean_score({"record": figures["record"]}) == Figure(0.2, None)


def test_the_function_counts_where_people_judge_as_well():
    prompts = label_prompts("rte", "yes", "no")
    assert measure("rte", judged_by_people(prompts, 0.5), ["yes", "no"])["accuracy"].value == 1
    with pytest.raises(ValueError, match="prompt rte/held_out/0/0: no function"):
        measure("rte", judged_by_people(prompts, 0), ["yes", "no"])
