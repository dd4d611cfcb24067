"""Tasks of programs, on files of a few rows, and their right programs in the sandbox."""

from dataclasses import replace

import pytest

from pipelines.tasks.draw import draw
from pipelines.tasks.registry import find
from schemas.errors import ConfigError
from tests.support.programs import HUMANEVAL, MBPP, write_programs
from tests.support.samples import SAMPLE
from transforms.rewards.code import UnitTests, code
from transforms.rewards.sandbox import launch


@pytest.fixture
def data(tmp_path):
    return write_programs(tmp_path)


@pytest.fixture
def sandbox():
    try:
        launch.check("required")
    except ConfigError as error:
        pytest.skip(str(error))
    yield
    for kept in launch._kept:
        kept.close()


def score(prompt, text):
    return code(replace(SAMPLE, response_text=text), UnitTests.model_validate(prompt.reward.args)).value


def test_humaneval_is_held_out_as_a_whole(data):
    prompts = list(find("humaneval").prompts(data, "held_out"))
    assert [prompt.prompt_id for prompt in prompts] == ["humaneval/held_out/0", "humaneval/held_out/1"]
    asked = prompts[1].messages[0].content
    assert asked.endswith("code.\n\n```python\ndef last(xs):\n    'The last.'\n```")
    with pytest.raises(ConfigError, match="humaneval has no split train"):
        draw(find("humaneval"), data, "train")


def test_right_programs_of_humaneval_pass_whole_or_continued(data, sandbox):
    for prompt, row in zip(find("humaneval").prompts(data, "held_out"), HUMANEVAL, strict=True):
        assert score(prompt, f"```python\n{row['prompt']}{row['canonical_solution']}```") == 1.0
        assert score(prompt, row["canonical_solution"]) == 1.0
        assert score(prompt, row["prompt"]) == 0.0
        assert score(prompt, f"```python\n{row['prompt']}    return 0\n```") == 0.0


def test_mbpp_is_split_by_its_published_numbers(data):
    splits = [list(find("mbpp").prompts(data, split)) for split in ("train", "held_out")]
    asked = [[prompt.messages[0].content.split(".")[0] for prompt in split] for split in splits]
    assert asked == [["Write program 601", "Write program 974"], ["Write program 11", "Write program 510"]]


def test_as_many_tests_are_shown_as_asked_for_and_all_are_run(data):
    first = next(find("mbpp").prompts(data, "held_out"))
    assert first.messages[0].content.endswith("\n\n```python\nassert add(1, 2) == 3\n```")
    assert len(first.reward.args["tests"]) == 3
    shown = next(find("mbpp", ["shown=3", "partial=true"]).prompts(data, "held_out"))
    assert shown.messages[0].content.count("assert ") == 3
    assert shown.reward.args["partial"] is True


def test_what_tests_need_besides_the_program_is_found_in_the_right_one(data):
    prompts = [*find("mbpp").prompts(data, "train"), *find("mbpp").prompts(data, "held_out")]
    arguments = {tuple(prompt.reward.args["names"]): prompt.reward.args for prompt in prompts}
    assert set(arguments) == {("size",), ("sum",), ("add",), ("data_of", "root")}
    assert arguments["size",]["context"] == "import sys\n"
    assert arguments["data_of", "root"]["setup"] == "root = Node(1) \nother = Node(2)"
    assert "root = Node(1)" in prompts[-1].messages[0].content


def test_right_programs_of_mbpp_pass(data, sandbox):
    rows = {f"Write program {row['task_id']}": row["code"] for row in MBPP}
    for prompt in (*find("mbpp").prompts(data, "train"), *find("mbpp").prompts(data, "held_out")):
        right = rows[prompt.messages[0].content.split(".")[0]]
        assert score(prompt, f"```python\n{right}\n```") == 1.0
        assert score(prompt, right.replace("return", "return 0 and")) == 0.0


@pytest.mark.parametrize(("name", "content"), [("mbpp/mbpp.jsonl", b'{"task_id": 11}'), ("mbpp/mbpp.jsonl", None)])
def test_rows_that_are_no_programs_are_named(data, name, content):
    broken = content or (data / name).read_bytes().replace(b"def add(a, b)", b"def add(a, b")
    (data / name).write_bytes(broken)
    with pytest.raises(ConfigError, match=rf"{name}, line [12]: "):
        list(find("mbpp").prompts(data, "held_out"))


@pytest.mark.parametrize("content", [b"plain", b"\x1f\x8b\x08cut"])
def test_a_file_that_is_not_compressed_is_named(data, content):
    (data / "humaneval/HumanEval.jsonl.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"HumanEval\.jsonl\.gz: .*expected JSON"):
        list(find("humaneval").prompts(data, "held_out"))
