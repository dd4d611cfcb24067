"""tau-bench's customers as prompts, on a shop of our own making."""

import json

import pytest

from pipelines.tasks.draw import draw, judged_by_people
from pipelines.tasks.registry import find
from schemas.errors import ConfigError
from tests.support.shop import CANCEL, POLICY, TASKS, write_shop
from transforms.environments.tau_retail.environment import Case
from transforms.environments.tau_retail.user import GREETING


@pytest.fixture
def data(tmp_path):
    write_shop(tmp_path / "tau-bench" / "retail")
    return tmp_path


def test_a_customer_becomes_a_conversation_whose_environment_knows_the_right_actions(data):
    prompt = next(find("tau_retail").prompts(data, "train"))
    assert (prompt.prompt_id, prompt.task, prompt.reward.name) == ("tau_retail/train/0", "tau_retail", "environment")
    system, user = prompt.messages
    assert (system.role, user.role) == ("system", "user")
    assert system.content.startswith(POLICY.strip())
    assert "- cancel_pending_order(order_id, reason): " in system.content
    assert TASKS[0]["instruction"] in user.content
    assert prompt.environment.model_dump() == {
        "name": "tau_retail",
        "args": {"actions": [{"name": CANCEL["name"], "arguments": CANCEL["kwargs"]}]},
    }


def test_the_held_out_split_is_the_test_set_and_tools_speak_in_the_role_that_is_asked_for(data):
    prompts = list(find("tau_retail", ["role=tool"]).prompts(data, "held_out"))
    assert [prompt.prompt_id for prompt in prompts] == ["tau_retail/held_out/0", "tau_retail/held_out/1"]
    cases = [Case.model_validate(prompt.environment.args) for prompt in prompts]
    assert [(case.role, case.outputs) for case in cases] == [("tool", ("2.2",)), ("tool", ())]


def test_a_customer_whom_a_model_plays_says_hello_and_only_the_environment_knows_what_they_want(data):
    prompt = next(find("tau_retail", ["user=model"]).prompts(data, "train"))
    assert (prompt.prompt_id, prompt.task) == ("tau_retail-model/train/0", "tau_retail-model")
    assert prompt.messages[1].content == GREETING
    case = Case.model_validate(prompt.environment.args)
    assert (case.user, case.instruction) == ("model", TASKS[0]["instruction"])
    assert TASKS[0]["instruction"] not in prompt.messages[0].content


def test_a_prompt_that_is_too_long_is_refused(data):
    longest = max(
        sum(len(each.content) for each in prompt.messages) for prompt in find("tau_retail").prompts(data, "train")
    )
    assert len(draw(find("tau_retail", [f"most_characters={longest}"]), data, "train")) == 2
    with pytest.raises(ConfigError, match=rf"tau_retail/train/\d has {longest} characters.*--args most_characters"):
        draw(find("tau_retail", [f"most_characters={longest - 1}"]), data, "train")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"actions": [{"name": "sell", "kwargs": {}}]}, r"tasks_train\.json, counted from 0: 0\.actions: .*no tool"),
        ({"outputs": [5]}, r"tasks_train\.json, counted from 0: 0\.outputs\.0"),
    ],
)
def test_a_task_that_cannot_be_played_is_named(data, change, complaint):
    (data / "tau-bench" / "retail" / "tasks_train.json").write_text(json.dumps([{**TASKS[0], **change}]))
    with pytest.raises(ConfigError, match=complaint):
        list(find("tau_retail").prompts(data, "train"))


def test_people_can_judge_conversations_only_alone(data):
    prompts = draw(find("tau_retail"), data, "train")
    assert judged_by_people(prompts, 0.0)[0].reward.name == "feedback"
    with pytest.raises(ConfigError, match="only a function's reward can be blended"):
        judged_by_people(prompts, 0.5)
