"""Tasks and rewards on the data sets as published; run where ASYNCFLOW_DATA names the directory that holds them."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.tasks.division import plain
from pipelines.tasks.registry import find
from schemas.config import EnvironmentsConfig
from tests.support.samples import SAMPLE
from transforms.environments import registry as environments
from transforms.environments.registry import Answer
from transforms.environments.tau_retail.environment import Case, TauRetail
from transforms.rewards import registry
from transforms.rewards.countdown import Numbers, countdown
from transforms.rewards.last_number import RightNumber, last_number
from transforms.rewards.math import RightExpression, math

pytestmark = pytest.mark.skipif("ASYNCFLOW_DATA" not in os.environ, reason="ASYNCFLOW_DATA names no directory of data")
registry.load()


@pytest.fixture
def data():
    return Path(os.environ["ASYNCFLOW_DATA"])


def answering(text):
    return replace(SAMPLE, response_text=text)


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gsm8k", (7473, 1319)),
        ("math", (911, 570)),
        ("countdown", (2996, 500)),
        ("ifeval", (394, 116)),
        ("arith", (3095, 1777)),
        ("mbpp", (374, 500)),
    ],
)
def test_every_row_is_a_prompt_and_none_is_on_both_sides(data, name, counts):
    splits = [list(find(name).prompts(data, split)) for split in ("train", "held_out")]
    assert tuple(map(len, splits)) == counts
    for prompt in (*splits[0], *splits[1]):
        registry.check(prompt.reward)
    trained, held_out = ({plain(prompt.messages[0].content) for prompt in split} for split in splits)
    assert not trained & held_out


def test_last_number_agrees_with_the_labels_of_solutions_by_models(data):
    """Cobbe et al. label the solutions of four models: two sizes, each fine-tuned, and with a verifier."""
    agreed: Counter[bool] = Counter()
    for row in read(data / "gsm8k" / "example_model_solutions.jsonl"):
        answer = RightNumber(answer=row["ground_truth"].rpartition("A:")[2])
        for solved in (value for value in row.values() if isinstance(value, dict)):
            agreed[last_number(answering(solved["solution"]), answer).value == solved["is_correct"]] += 1
    assert agreed.total() == 4 * 1319
    assert agreed[True] / agreed.total() >= 0.99


def test_math_knows_every_right_answer_and_takes_none_for_the_next(data):
    rights = [prompt.reward.args["answer"] for prompt in find("math").prompts(data, "held_out")]
    for right, other in zip(rights, [*rights[1:], rights[0]], strict=True):
        arguments = RightExpression(answer=right)
        assert math(answering(f"So it is $\\boxed{{{right}}}$."), arguments).value == 1.0, right
        if right != other.removeprefix("x="):
            assert math(answering(f"So it is $\\boxed{{{other}}}$."), arguments).value == 0.0, (right, other)


def test_countdown_knows_every_published_solution_and_takes_none_for_the_next(data):
    rows = read(data / "countdown" / "test.jsonl")
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        arguments = Numbers(numbers=row["numbers"], target=row["target"])
        assert countdown(answering(row["solution"]), arguments).value == 1.0
        assert countdown(answering(other["solution"]), arguments).value == 0.0


async def test_the_right_actions_get_the_reward_for_every_customer_and_doing_nothing_where_it_is_right(
    data,
):
    environments.load(EnvironmentsConfig(data={"tau_retail": data / "tau-bench" / "retail"}))
    for split, customers, idle in (("train", 500, 5), ("held_out", 115, 7)):
        cases = [Case.model_validate(prompt.environment.args) for prompt in find("tau_retail").prompts(data, split)]
        acting = [[*map(calling, case.actions), f"Done: {', '.join(case.outputs)}", "Bye."] for case in cases]
        assert [await reward_of(case, texts) for case, texts in zip(cases, acting, strict=True)] == [1.0] * customers
        rewards = [await reward_of(case, ["Hello.", "Bye."]) for case in cases]
        assert sum(rewards) == idle, "customers for whom nothing is to be changed, or only what tools refuse, and said"


def calling(action):
    return f"<tool_call>{action.model_dump_json()}</tool_call>"


async def reward_of(case, texts):
    """Of a conversation that these answers bring to its end."""
    shop = TauRetail()
    await shop.reset(case)
    rewards = []
    for turn, text in enumerate(texts, 1):
        step = await shop.step(Answer(turn=turn, text=text, token_ids=()))
        rewards.append(step.reward)
        if step.done:
            return sum(rewards)
    raise AssertionError("it did not end")
