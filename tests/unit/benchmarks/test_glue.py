"""The pure functions of tests/benchmarks/glue.py: which prompts are drawn, what is told of answers, what is judged."""

import json
from collections import Counter
from itertools import islice

import pytest

from pipelines.evaluation.ask import Answers
from pipelines.evaluation.questions import Questions
from pipelines.evaluation.scores import Found, score
from pipelines.tasks.registry import find
from schemas.evaluation import EvaluationConfig
from schemas.prompts import Prompt, RewardSpec
from tests.benchmarks import glue, supervised
from tests.support.benchmarks import write_benchmarks

LABELS = ["yes", "no"]


def labelled(number, answer, task="rte"):
    reward = RewardSpec(name="label", args={"answer": answer, "labels": LABELS})
    return Prompt(prompt_id=f"{task}/train/{number}", task=task, text=f"{number}?", reward=reward)


def near(answer):
    return Prompt(text="?", task="stsb", reward=RewardSpec(name="closeness", args={"answer": answer, "highest": 5}))


def answered(prompt, text, reward, version=1):
    return Answers(prompt, (reward,), frozenset({version}), (text,))


# ---- prompts ------------------------------------------------------------------------------------------


def test_every_prompt_is_drawn_once_before_any_is_drawn_again():
    prompts = [labelled(number, "yes") for number in range(5)]
    drawn = [prompt.prompt_id for prompt in islice(glue.endless(prompts, 3, evenly=False), 10)]
    assert set(drawn[:5]) == set(drawn[5:]) == {prompt.prompt_id for prompt in prompts}
    assert drawn[:5] != drawn[5:]
    assert drawn == [prompt.prompt_id for prompt in islice(glue.endless(prompts, 3, evenly=False), 10)]
    assert drawn != [prompt.prompt_id for prompt in islice(glue.endless(prompts, 4, evenly=False), 10)]


def test_classes_come_as_they_are_or_evenly():
    prompts = [labelled(number, "no" if number == 0 else "yes") for number in range(10)]
    counts = {}
    for evenly in (False, True):
        drawn = islice(glue.endless(prompts, 0, evenly=evenly), 40)
        counts[evenly] = Counter(prompt.function.args["answer"] for prompt in drawn)
    assert counts == {False: {"yes": 36, "no": 4}, True: {"yes": 20, "no": 20}}


def test_evenly_drawn_classes_have_no_order():
    prompts = [labelled(number, LABELS[number % 2]) for number in range(10)]
    firsts = [prompt.function.args["answer"] for prompt in islice(glue.endless(prompts, 0, evenly=True), 0, 80, 2)]
    assert 5 < firsts.count("yes") < 35


def test_numbers_are_classes_by_the_nearest_whole_one():
    assert [glue.class_of(near(answer)) for answer in (0.4, 2.6, 5)] == [0, 3, 5]
    assert glue.class_of(labelled(0, "no")) == "no"


def test_tasks_take_turns_though_one_is_small(tmp_path):
    write_benchmarks(tmp_path)
    tasks = [find("mnli"), find("cb")]
    drawn = list(islice(glue.stream(tasks, tmp_path, 0, ()), 20))
    assert [prompt.task for prompt in drawn] == ["mnli", "cb"] * 10


def test_held_out_is_the_same_for_all_and_bounded(tmp_path):
    write_benchmarks(tmp_path)
    every = glue.hold_out(find("boolq"), tmp_path, 0)
    assert len(every) == len(list(find("boolq").prompts(tmp_path, "held_out")))
    assert glue.hold_out(find("boolq"), tmp_path, 1) == every[:1]


def test_held_out_questions_of_multirc_are_whole(tmp_path):
    write_benchmarks(tmp_path)
    every = glue.hold_out(find("multirc"), tmp_path, 0)
    drawn = glue.hold_out(find("multirc"), tmp_path, len(every) - 1)
    answers = Counter(prompt.prompt_id.rpartition("/")[0] for prompt in drawn)
    assert len(drawn) == len(every) - 2
    assert set(answers.values()) == {2}


# ---- figures ------------------------------------------------------------------------------------------


def test_figures_of_answers():
    answers = [
        answered(labelled(0, "yes"), "Yes.", 1.0),
        answered(labelled(1, "no"), "yes", 0.0, version=2),
        answered(labelled(2, "no"), "no", 1.0),
        Answers(labelled(3, "no"), (), frozenset()),
        answered(near(2.0), "2", 1.0),
        answered(near(4.0), "3", 0.8),
    ]
    figures = glue.figures_of(answers)
    assert figures["tasks"]["rte"]["accuracy"] == figures["mean_accuracy"] == 0.5
    assert figures["tasks"]["rte"]["accuracy_majority"] == figures["mean_accuracy_majority"] == 0.75
    assert figures["tasks"]["rte"]["metrics"] == {"accuracy": {"value": 0.5, "majority": 0.75}}
    assert figures["tasks"]["stsb"]["reward"] == pytest.approx(0.9)
    assert "accuracy" not in figures["tasks"]["stsb"]
    assert figures["mean_score"] == pytest.approx((0.5 + 1) / 2)
    assert (figures["prompts"], figures["unanswered"], figures["versions"]) == (6, 1, [1, 2])


def test_accuracies_have_the_intervals_of_asyncflow_eval():
    answers = [answered(labelled(number, "yes"), LABELS[number % 4 == 0], 0.0) for number in range(40)]
    (task,), _ = score(Questions({"rte": tuple(each.prompt for each in answers)}, {}), Found(answers, held=False),
                       EvaluationConfig(), 0)  # fmt: skip
    figures = glue.figures_of_task("rte", answers)
    assert figures["accuracy"] == task.scores[0].value == 0.75
    assert figures["accuracy_95"] == [task.scores[0].low, task.scores[0].high]
    assert 0.5 < task.scores[0].low < 0.75 < task.scores[0].high < 0.95


def outcome(accuracy, score, rte=0.6):
    tasks = {"rte": {"metrics": {"accuracy": {"value": rte, "majority": 0.5}}},
             "record": {"metrics": {"em": {"value": 0.1, "majority": None}}}}  # fmt: skip
    return {"mean_accuracy": accuracy, "mean_score": score, "tasks": tasks}


BEFORE = {"free": outcome(0.3, 0.2), "constrained": outcome(0.5, 0.1)}
CLEAN = {"ok": True}


def test_gain_is_over_the_better_of_both_ways_to_ask():
    judged = glue.judge(BEFORE, outcome(0.66, 0.4), CLEAN)
    assert judged["gain"] == {"mean_accuracy": pytest.approx(0.16), "mean_score": pytest.approx(0.2)}
    assert judged["passed"]


@pytest.mark.parametrize(
    ("before", "after", "audited"),
    [
        (BEFORE, outcome(0.64, 0.9), CLEAN),
        (BEFORE, outcome(0.7, 0.4, rte=0.49), CLEAN),
        (BEFORE, outcome(0.7, 0.4), {"ok": False}),
        ({"free": BEFORE["free"]}, outcome(0.7, 0.4), CLEAN),
        ({}, outcome(0.7, 0.4), CLEAN),
    ],
    ids=["gain", "majority", "audit", "constrained is missing", "both are missing"],
)
def test_each_bar_can_be_missed(before, after, audited):
    assert not glue.judge(before, after, audited)["passed"]


def test_what_is_below_the_most_frequent_class_is_named():
    assert glue.below_majority(outcome(0.7, 0.4, rte=0.49)) == ["rte.accuracy"]
    assert glue.below_majority(outcome(0.7, 0.4, rte=0.5)) == []


def test_curve_weighs_steps_by_their_groups():
    rows = [
        {"step": 1, "reward": {"rte": 0.0}, "groups": {"rte": 3}},
        {"step": 2, "reward": {"rte": 1.0, "cb": 0.5}, "groups": {"rte": 1, "cb": 2}},
        {"step": 3, "reward": {"cb": 0.25}, "groups": {"cb": 2}},
    ]
    assert glue.curve_of(rows, block=2) == [
        {"to_step": 2, "reward": {"cb": 0.5, "rte": 0.25}},
        {"to_step": 3, "reward": {"cb": 0.25}},
    ]


def test_sheet_is_on_disk_at_once(tmp_path):
    sheet = glue.Sheet(tmp_path / "sheet.json")
    for found in ({"before": 1}, {"after": 2}):
        sheet.put(**found)
        assert json.loads(sheet.file.read_text()) == sheet.figures
    assert sheet.figures == {"before": 1, "after": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.json"]


# ---- supervised ---------------------------------------------------------------------------------------


class Letters:
    def encode(self, prompt):
        return tuple(map(ord, prompt.text))

    def encode_answer(self, text):
        return (*map(ord, text), 0)


def test_target_is_the_right_answer_and_the_end_of_the_turn(tmp_path):
    file = tmp_path / "examples.jsonl"
    glue.write_examples(file, iter([labelled(0, "no"), near(2.25)]), 2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["no", "2.2"]
    example = supervised.to_example(rows[0], Letters())
    assert example.token_ids == (*map(ord, "0?no"), 0)
    assert (example.prompt_tokens, example.mask, example.advantage) == (2, (True,) * 3, 1.0)
    assert example.demonstrated
    assert example.as_given
