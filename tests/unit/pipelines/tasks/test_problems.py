"""Tasks of mathematics and instructions, on files of a few rows."""

import json

import pytest
from structlog.testing import capture_logs

from pipelines.tasks.division import is_held_out, plain, story
from pipelines.tasks.draw import draw
from pipelines.tasks.registry import find
from schemas.errors import ConfigError
from tests.support.problems import IFEVAL, STORIES, write_problems, write_rows


@pytest.fixture
def data(tmp_path):
    return write_problems(tmp_path)


def answers(prompts):
    return [prompt.reward.args["answer"] for prompt in prompts]


def asked(prompts):
    return [prompt.messages[0].content.rpartition("\n\n")[0] for prompt in prompts]


def test_the_answer_of_gsm8k_is_the_number_behind_the_marks(data):
    prompts = list(find("gsm8k").prompts(data, "train"))
    assert answers(prompts) == ["1200", "-2"]
    assert prompts[0].messages[0].content.startswith("A box holds 12 pens.")


def test_what_is_held_out_of_math_is_not_trained(data):
    train = list(find("math500").prompts(data, "train"))
    assert asked(train) == ["What is half of $x^{2}$?", "What is $2 + 2$?"]
    assert answers(train) == ["\\frac{x^{2}}{2}", "4"]
    assert answers(find("math500").prompts(data, "held_out")) == ["2", "-1"]


def test_contests_are_held_out_as_a_whole(data):
    prompts = list(find("math").prompts(data, "held_out"))
    assert [prompt.task for prompt in prompts] == ["math500", "math500", "aime24", "amc23", "amc23"]
    assert answers(prompts)[2:] == ["101", "3.5", "27"]
    assert {prompt.task for prompt in find("math").prompts(data, "train")} == {"math500"}
    with pytest.raises(ConfigError, match="aime24 has no split train"):
        draw(find("aime24"), data, "train")


def test_a_family_interleaves_those_of_its_members_that_are_asked_for(data):
    whole = draw(find("arith"), data, "held_out", seed=3)
    assert {prompt.task for prompt in whole} == {"asdiv", "mawps", "svamp"}
    assert [prompt.task for prompt in whole] != sorted(prompt.task for prompt in whole)
    chosen = draw(find("arith", ["tasks=svamp,asdiv"]), data, "held_out", seed=3)
    assert {prompt.task for prompt in chosen} == {"asdiv", "svamp"}
    alone = {prompt.prompt_id: prompt for prompt in find("asdiv").prompts(data, "held_out")}
    assert alone == {prompt.prompt_id: prompt for prompt in whole if prompt.task == "asdiv"}
    with pytest.raises(ConfigError, match="no task 'gsm8k' in arith; there are asdiv, mawps, svamp"):
        find("arith", ["tasks=gsm8k"])
    with pytest.raises(ConfigError, match="arith has no split train"):
        draw(find("arith", ["tasks=svamp"]), data, "train")


def test_a_story_is_on_one_side_whoever_tells_it(data):
    sides = [
        {story(text) for name in ("asdiv", "mawps") for text in asked(find(name).prompts(data, split))}
        for split in ("train", "held_out")
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == len(STORIES)


def test_a_story_is_told_by_its_words_in_small_letters():
    assert story("Ann had 3 pens, and Bob took two of them.") == "had pens and took two of"
    assert plain("Ann had  3 Pens!") == plain("ann had 3 pens")


def test_a_copy_is_read_once_and_other_answers_than_numbers_not_at_all(data):
    body = "Ann " + next(text for text in STORIES if not is_held_out(story(f"Ann {text}")))
    given = ("9 (pens)", "Ann", "1:30", "1/2", "0.333", "1,000.5 (m)", "2 (a); 3 (b)", "-7")
    rows = [{"body": body, "question": f"Of {n}?", "answer": answer} for n, answer in enumerate(given)]
    write_rows(data / "arith" / "asdiv.jsonl", [rows[0], *rows])
    assert answers(find("asdiv").prompts(data, "train")) == ["9", "1000.5", "-7"]


def test_texts_of_word_problems_read_like_texts(data):
    mawps, svamp = (next(find(name).prompts(data, "held_out")) for name in ("mawps", "svamp"))
    assert " ," not in mawps.messages[0].content
    assert asked([svamp])[0] == f"Ann {STORIES[0]}. How many were there?"
    assert answers([mawps, svamp]) == ["2", "1.5"]


def test_a_puzzle_becomes_a_prompt(data):
    first = next(find("countdown").prompts(data, "held_out"))
    assert first.messages[0].content.startswith("Numbers: 3, 5, 7\n\nHow do they make 26?")
    assert first.reward.args == {"numbers": [3, 5, 7], "target": 26}


def test_puzzles_of_few_numbers_may_be_chosen_and_form_counts_in_training_only(data):
    many = {"numbers": [1, 2, 3, 4], "target": 10}
    for split in ("train", "test"):
        write_rows(data / "countdown" / f"{split}.jsonl", [many, {"numbers": [3, 5, 7], "target": 26}])
    task = find("countdown", ["most_numbers=3", "form=0.1"])
    train, held_out = ([*task.prompts(data, split)] for split in ("train", "held_out"))
    assert [prompt.prompt_id for prompt in (*train, *held_out)] == ["countdown-3/train/0", "countdown-3/held_out/0"]
    assert train[0].reward.args == {"numbers": [3, 5, 7], "target": 26, "form": 0.1}
    assert held_out[0].reward.args == {"numbers": [3, 5, 7], "target": 26}
    assert len([*find("countdown").prompts(data, "train")]) == 2


def test_instructions_come_without_what_is_null(data):
    splits = [list(find("ifeval").prompts(data, split)) for split in ("train", "held_out")]
    assert sorted(prompt.messages[0].content for split in splits for prompt in split) == sorted(
        row["prompt"] for row in IFEVAL
    )
    assert all(splits)
    assert splits[0][0].reward.args["instructions"] == [
        {"name": "punctuation:no_comma", "args": {}},
        {"name": "length_constraints:number_words", "args": {"num_words": 6, "relation": "less than"}},
    ]


def test_prompts_with_instructions_that_cannot_be_checked_are_left_out_and_counted(data):
    unchecked = ["punctuation:no_comma", "language:response_language"]
    rows = [{**row, "instruction_id_list": unchecked, "kwargs": [{}, {"language": "de"}]} for row in IFEVAL[:3]]
    write_rows(data / "ifeval" / "input_data.jsonl", [*rows, *IFEVAL[3:]])
    with capture_logs() as logs:
        kept = [prompt for split in ("train", "held_out") for prompt in find("ifeval").prompts(data, split)]
    assert len(kept) == len(IFEVAL) - 3
    assert sum(log["unchecked"]["language:response_language"] for log in logs) == 3


@pytest.mark.parametrize(
    ("task", "file", "row", "complaint"),
    [
        ("gsm8k", "gsm8k/train.jsonl", {"question": "?", "answer": "12"}, "line 2: answer '12', expected #### NUMBER"),
        ("gsm8k", "gsm8k/train.jsonl", {"question": 1, "answer": "#### 1"}, "line 2: question: "),
        ("math", "math/math_test1000.jsonl", {"problem": "?", "solution": "2"}, "line 2: solution '2', expected"),
        ("math", "math/math_test1000.jsonl", {"problem": "?", "solution": "\\boxed{2"}, "line 2: solution"),
        ("arith", "arith/asdiv.jsonl", {"body": "a"}, "line 2: question: Field required"),
        ("arith", "arith/mawps_singleop.jsonl", {"input": "a", "target": "b"}, "line 2: target: "),
        ("countdown", "countdown/train.jsonl", {"numbers": [1.5], "target": 1}, "line 2: numbers"),
        ("ifeval", "ifeval/input_data.jsonl", {**IFEVAL[1], "kwargs": [{}]}, "line 2: .*2 instructions with 1"),
        ("ifeval", "ifeval/input_data.jsonl", {**IFEVAL[1], "kwargs": [{}, {}]}, "line 2: instruction length_con"),
    ],
)
def test_a_row_that_is_none_is_named_by_file_and_line(data, task, file, row, complaint):
    with (data / file).open() as lines:
        first = lines.readline()
    (data / file).write_text(f"{first}{json.dumps(row)}\n")
    with pytest.raises(ConfigError, match=f"{file.rpartition('/')[2]}, {complaint}"):
        draw(find(task), data, "train")


def test_a_list_that_is_none_is_named(data):
    for content, complaint in (
        (b"{}", "expected a list"),
        (b"[", "expected a list"),
        (b'[{"Body": "a"}]', "0.Question"),
    ):
        (data / "arith" / "svamp.json").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"svamp\.json.*{complaint}"):
            draw(find("svamp"), data, "held_out")
    (data / "gsm8k" / "train.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match=r"train\.jsonl, line 1"):
        draw(find("gsm8k"), data, "train")
