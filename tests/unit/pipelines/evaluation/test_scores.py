"""From answers to the table: what is counted where, and what is in no figure."""

from io import StringIO

import pytest
from rich.console import Console

from pipelines.evaluation.ask import Answers
from pipelines.evaluation.questions import Questions
from pipelines.evaluation.report import Report, render
from pipelines.evaluation.scores import Found, score
from schemas.evaluation import EvaluationConfig
from schemas.prompts import Prompt, RewardSpec

ONE = frozenset({1})


def label(task, number, right="yes"):
    reward = RewardSpec(name="label", args={"answer": right, "labels": ["yes", "no"]})
    return Prompt(prompt_id=f"{task}/{number}", task=task, text="?", reward=reward)


def number(task, place):
    reward = RewardSpec(name="last_number", args={"answer": "5"})
    return Prompt(prompt_id=f"{task}/{place}", task=task, text="?", reward=reward)


def answered(prompt, text, *rewards):
    return Answers(prompt, rewards, ONE, (text,) * len(rewards))


def unanswered(prompt):
    return Answers(prompt, (), frozenset())


def questions(*answers, **families):
    tasks = {}
    for each in answers:
        tasks.setdefault(each.prompt.task, []).append(each.prompt)
    return Questions({task: tuple(prompts) for task, prompts in tasks.items()}, families)


def scored(greedy, drawn=(), held=False, limits=None, **families):
    found = Found(greedy, held=held, drawn=drawn)
    return score(questions(*greedy, **families), found, limits or EvaluationConfig(), 0)


RTE = [
    answered(label("rte", 0), "yes", 1.0),
    answered(label("rte", 1), "it is no", 0.0),
    answered(label("rte", 2, "no"), "no", 1.0),
    unanswered(label("rte", 3)),
]


def test_an_answer_that_is_missing_is_wrong_in_a_benchmark():
    (task,), _ = scored(RTE)
    (accuracy,) = task.scores
    assert (task.rows, task.unanswered, task.null_rewards, task.held) == (4, 1, 0, 0)
    assert (accuracy.metric, accuracy.value, accuracy.majority) == ("accuracy", 2 / 4, 3 / 4)
    assert accuracy.low < accuracy.value < accuracy.high
    assert (accuracy.samples, accuracy.temperature) == (1, 0)


def test_labels_have_an_accuracy_in_any_task():
    (task,), _ = scored([answered(label("intents", n), text, 0.0) for n, text in enumerate(("yes", "no", "?"))])
    assert [(each.metric, each.value, each.majority) for each in task.scores] == [("accuracy", pytest.approx(1 / 3), 1)]


def test_other_tasks_have_a_mean_of_the_rewards_that_there_are():
    greedy = [
        answered(number("sums", 0), "5", 1.0),
        answered(number("sums", 1), "4", 0.25),
        answered(number("sums", 2), "", None),
        unanswered(number("sums", 3)),
    ]
    (task,), _ = scored(greedy)
    (mean,) = task.scores
    assert (task.rows, task.unanswered, task.null_rewards) == (4, 1, 1)
    assert (mean.metric, mean.value, mean.majority) == ("mean_reward", (1 + 0.25) / 2, None)


def test_a_task_without_a_reward_has_no_figure_and_its_family_no_score():
    greedy = [*RTE, answered(number("sums", 0), "", None)]
    (_, sums), families = scored(greedy, both=("rte", "sums"))
    assert (sums.scores, families) == ((), [])


def test_answers_that_are_drawn_have_a_mean_reward_and_pass_at_k_beside_the_greedy_one():
    limits = EvaluationConfig(samples=4, pass_at=(1, 4), temperature=0.7)
    prompts = [number("sums", place) for place in range(3)]
    drawn = [
        answered(prompts[0], "", 1.0, 0.0, 0.0, 0.0),
        answered(prompts[1], "", 0.0, 0.0, 0.0, 0.0),
        answered(prompts[2], "", 1.0, 1.0, None, 1.0),
    ]
    (task,), _ = scored([answered(each, "", 0.0) for each in prompts], drawn, limits=limits)
    values = {(each.metric, each.temperature, each.samples): each.value for each in task.scores}
    assert values == {
        ("mean_reward", 0, 1): 0,
        ("mean_reward", 0.7, 4): pytest.approx((1 / 4 + 0 + 1) / 3),
        ("pass@1", 0.7, 4): pytest.approx((1 / 4 + 0 + 1) / 3),
        ("pass@4", 0.7, 4): pytest.approx((1 + 0) / 2),  # the third has three rewards only
    }
    assert task.null_rewards == 1


def test_a_family_scores_the_mean_over_its_tasks_and_the_same_as_the_benchmark():
    mrpc = [answered(label("mrpc", n), text, 0.0) for n, text in enumerate(("yes", "no"))]
    _, (family,) = scored([*RTE, *mrpc], glue=("rte", "mrpc"))
    assert family.value == pytest.approx((2 / 4 + (1 / 2 + 2 / 3) / 2) / 2)
    assert family.majority == pytest.approx((3 / 4 + (1 + 1) / 2) / 2)
    assert family.low < family.value < family.high


def test_tasks_do_not_change_each_others_intervals():
    alone, _ = scored(RTE)
    beside, _ = scored([answered(number("sums", 0), "", 1.0), *RTE])
    assert alone[0] == beside[1]


def test_the_table_says_what_was_asked_and_what_is_missing():
    greedy = [*RTE, answered(number("sums", 0), "", None), answered(number("sums", 1), "", 0.5)]
    tasks, families = scored(greedy, held=True, both=("rte", "sums"))
    assert [task.held for task in tasks] == [4, 0]
    report = Report(
        model="m", run="demo", version=3, version_max=4, dtype="float32", split="held_out", limit=None, seed=0,
        constrained=True, max_tokens=8, prompts_sha256="0" * 64, tasks=tuple(tasks), families=tuple(families),
    )  # fmt: skip
    screen = StringIO()
    Console(file=screen, width=80).print(render(report))
    lines = [" ".join(line.split()) for line in screen.getvalue().splitlines()]
    assert lines[:2] == [
        "run demo, version 3 to 4, held out, greedy, held to labels",
        "task metric value 95 % majority rows unanswered",
    ]
    low, high = tasks[0].scores[0].low, tasks[0].scores[0].high
    assert f"rte accuracy 0.500 {low:.3f} to {high:.3f} 0.750 4 1" in lines
    assert "sums mean_reward, free 0.500 0.500 to 0.500 - 2 0" in lines
    assert any(line.startswith("both mean of 2 tasks 0.500") for line in lines)
    assert any("could not be computed, in no mean: sums 1" in line for line in lines)
