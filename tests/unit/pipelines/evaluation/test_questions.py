"""Which prompts an evaluation of tasks asks, and what it says where it cannot."""

import pytest

from pipelines.evaluation.questions import Draw, ask_tasks, require_choices
from pipelines.tasks.family import Superglue
from pipelines.tasks.registry import find
from schemas.errors import ConfigError
from tests.support.tasks import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_family_is_asked_by_task_and_a_shared_task_once(data):
    found = ask_tasks(["glue,superglue"], data, Draw())
    assert found.families["superglue"] == tuple(member.name for member in Superglue.members)
    assert set(found.families["glue"]) & set(found.families["superglue"]) == {"rte"}
    assert len(found.tasks) == 15
    ids = [prompt.prompt_id for prompt in found.prompts]
    assert len(ids) == len(set(ids))
    assert {prompt.prompt_id for prompt in found.tasks["rte"]} == {
        prompt.prompt_id for prompt in find("rte").prompts(data, "held_out")
    }


def test_a_limit_is_of_each_task_and_the_seed_says_which_prompts_it_leaves(data):
    every = ask_tasks(["qnli", "copa"], data, Draw("train"))
    some = ask_tasks(["qnli", "copa"], data, Draw("train", limit=2))
    assert [len(prompts) for prompts in some.tasks.values()] == [2, min(2, len(every.tasks["copa"]))]
    assert some.tasks["qnli"] == every.tasks["qnli"][:2]
    orders = [ask_tasks(["qnli"], data, Draw("train", seed=seed)).tasks["qnli"] for seed in range(4)]
    assert any(order != orders[0] for order in orders)
    assert not every.families


def test_arguments_are_told_to_the_task(data):
    assert set(ask_tasks(["translation"], data, Draw(), ["to=fr"]).tasks) == {"translation-fr"}
    assert set(ask_tasks(["glue"], data, Draw(), ["tasks=sst2,rte"]).families["glue"]) == {"sst2", "rte"}


@pytest.mark.parametrize(
    ("names", "draws", "arguments", "told"),
    [
        (["gleu"], Draw(), [], "no task 'gleu'; did you mean glue"),
        ([], Draw(), [], "--tasks is missing"),
        (["rte", "sst2"], Draw(), ["to=fr"], "--args are for one task, and --tasks names 2"),
        (["rte"], Draw(), ["to=fr"], "--args of task rte"),
        (["rte"], Draw(limit=0), [], "--limit 0: expected 1 or more"),
        (["svamp"], Draw("train"), [], "task svamp has no split train; give the other one with --split"),
    ],
)
def test_what_cannot_be_asked_is_named(data, names, draws, arguments, told):
    with pytest.raises(ConfigError, match=told):
        ask_tasks(names, data, draws, arguments)


def test_a_directory_or_file_that_is_missing_is_named(data, tmp_path):
    with pytest.raises(ConfigError, match="none: no such directory; give the one that holds the data sets"):
        ask_tasks(["rte"], tmp_path / "none", Draw())
    with pytest.raises(ConfigError, match=r"task rte: .* lacks rte/val.jsonl"):
        ask_tasks(["rte"], tmp_path, Draw())


def test_answers_can_be_held_to_labels_if_any_prompt_has_them(data):
    require_choices(ask_tasks(["superglue"], data, Draw()))
    with pytest.raises(ConfigError, match="the prompts of gsm8k have no labels"):
        require_choices(ask_tasks(["gsm8k"], data, Draw()))
