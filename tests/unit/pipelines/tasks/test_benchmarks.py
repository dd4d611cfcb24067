"""GLUE and SuperGLUE as prompts: what is asked, what is right, what is held out, and what is said of bad rows."""

import os
from collections import Counter
from pathlib import Path

import pytest

from pipelines.tasks.division import held_out, is_held_out
from pipelines.tasks.draw import draw
from pipelines.tasks.family import Glue, Superglue
from pipelines.tasks.registry import find
from schemas.errors import ConfigError
from tests.support.benchmarks import NAMES, TEXTS, write_benchmarks, write_file
from tests.support.samples import SAMPLE
from transforms.rewards import registry

MEMBERS = sorted({member.name for member in (*Glue.members, *Superglue.members)})
RECORD = "superglue_fewshot32/ReCoRD/train.jsonl"
MULTIRC = "superglue_fewshot32/MultiRC/val.jsonl"
DATA = os.environ.get("ASYNCFLOW_DATA")


@pytest.fixture
def data(tmp_path):
    write_benchmarks(tmp_path)
    return tmp_path


def asked(name, data, split="train"):
    return [(prompt.messages[0].content, prompt.reward.args) for prompt in find(name).prompts(data, split)]


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("sst2", 'long and "dull\n\nIs this review positive or negative? Answer with one of: positive, negative.',
         "negative"),
        ("cola", "She sleeps.\n\nIs this sentence acceptable English? Answer with one of: acceptable, unacceptable.",
         "acceptable"),
        ("mrpc", 'First: He "won".\nSecond: He was first.\n\nDo both sentences mean the same? '
         "Answer with one of: yes, no.", "yes"),
        ("stsb", "First: A man runs.\nSecond: A man, he runs.\n\nHow alike are the meanings, from 0 (not at all) to 5 "
         "(the same)? Answer with one number.", 4.6),
        ("wnli", "Text: Al saw Bo. He ran.\nStatement: Bo ran.\n\nIs the statement true, given the text? "
         "Answer with one of: yes, no.", "yes"),
        ("rte", "Text: It rains.\nStatement: It is dry.\n\nIs the statement true, given the text? "
         "Answer with one of: yes, no.", "no"),
        ("cb", "Text: It rains.\nStatement: It is dry.\n\nIs the statement true, given the text? "
         "Answer with one of: yes, maybe, no.", "no"),
        ("copa", "It rained.\n\n1: He got wet.\n2: He sang.\n\nWhich is the effect? Answer with one of: 1, 2.", "1"),
        ("wic", 'First: The bank of a river.\nSecond: A bank lends.\n\nDoes "bank" mean the same in both? '
         "Answer with one of: yes, no.", "no"),
        ("wsc", 'Al saw Bo. He ran.\n\nDoes "He" mean "Bo" here? Answer with one of: yes, no.', "yes"),
    ],
)  # fmt: skip
def test_a_row_becomes_a_text_a_question_and_what_may_be_answered(data, name, text, answer):
    first = asked(name, data)[0]
    assert first[0] == text
    assert first[1]["answer"] == answer


def test_a_name_that_is_left_out_is_one_of_those_in_the_article(data):
    ((text, arguments),) = asked("record", data)
    assert text.startswith("Ann and Bob met in Paris.\nBob came by train\n\n___ took the train.\n\n")
    assert text.endswith(f"Answer with one of: {', '.join(NAMES)}.")
    assert arguments == {"references": ["Bob"]}


def test_every_answer_of_a_question_is_asked_for_and_its_id_tells_the_question(data):
    prompts = [prompt for split in ("train", "held_out") for prompt in find("multirc").prompts(data, split)]
    assert len(prompts) == 4 * len(TEXTS)
    assert [prompt.prompt_id for prompt in prompts[:4]] == [f"multirc/train/{place}" for place in
                                                            ("0/0", "0/1", "1/0", "1/1")]  # fmt: skip
    assert [prompt.reward.args["answer"] for prompt in prompts[:2]] == ["yes", "no"]
    assert "Question: What does it do?\nAnswer: It eats\n\nIs this answer right?" in prompts[1].messages[0].content


def test_files_follow_one_another(data):
    assert [arguments["answer"] for _, arguments in asked("cola", data, "held_out")] == ["unacceptable", "acceptable"]
    assert [arguments["answer"] for _, arguments in asked("wnli", data)] == ["yes", "no"]


@pytest.mark.parametrize("name", ["qnli", "mnli", "boolq", "multirc"])
def test_one_file_is_divided_and_every_row_is_in_one_split(data, name):
    sides = [{text for text in TEXTS if any(text in question for question, _ in asked(name, data, split))}
             for split in ("train", "held_out")]  # fmt: skip
    assert all(sides)
    assert sides[0] | sides[1] == set(TEXTS)
    assert not sides[0] & sides[1]


def test_the_rule_is_a_stable_hash_that_holds_out_one_of_five():
    assert [number for number in range(20) if is_held_out(str(number))] == [0, 7, 8, 9, 10, 19]  # as sha256sum has it
    assert sum(is_held_out(str(number)) for number in range(10_000)) == pytest.approx(2000, abs=120)


def test_rows_that_share_a_text_are_on_the_same_side_whatever_stands_between_them():
    chain = [(str(number), str(number + 1)) for number in range(30)]
    assert len(set(held_out(chain))) == 1
    assert held_out(chain[::-1]) == held_out(chain)
    assert held_out([("0",), ("1",)]) == [True, False]


def test_a_long_text_is_cut_behind_a_word_and_the_question_remains(data):
    write_file(data, "sst2/train.tsv", f"label\tsentence\n1\t{'word ' * 100}\n")
    (prompt,) = find("sst2", ["most_characters=100"]).prompts(data, "train")
    assert prompt.messages[0].content.startswith(f"{'word ' * 18}word...\n\nIs this review")
    assert len(
        find("glue", ["most_characters=100", "tasks=sst2"]).shuffled(data, "train", 0)[0].messages[0].content
    ) < (len(asked("sst2", data)[0][0]))


@pytest.mark.parametrize(
    ("task", "name", "content", "complaint"),
    [
        ("sst2", "sst2/train.tsv", "label\tsentence\n2\tso so\n", r"line 2: label is '2', expected one of 1, 0"),
        ("sst2", "sst2/train.tsv", "label\tsentence\n1\n", r"line 2: 1 cells, expected 2: label, sentence"),
        ("sst2", "sst2/train.tsv", "label\ttext\n1\tgood\n", r"line 2: sentence is missing, expected text"),
        ("sst2", "sst2/train.tsv", "label\tsentence\n1\t \n", r"line 2: sentence is ' ', expected text"),
        ("sst2", "sst2/train.tsv", "label\tsentence\n", r"no rows in sst2/train\.tsv"),
        ("sst2", "sst2/train.tsv", "", r"no rows in sst2/train\.tsv"),
        ("stsb", "stsb/train.csv", "a,b,5.1\n", "line 1: score is '5.1', expected 0 to 5"),
        ("stsb", "stsb/train.csv", "a,b,nan\n", "line 1: score is 'nan', expected 0 to 5"),
        ("stsb", "stsb/train.csv", 'a,"b" c,1\n', r"stsb/train\.csv, line 1: "),
        ("rte", "rte/train.jsonl", "\n{]\n", "line 2: .*; expected JSON"),
        ("rte", "rte/train.jsonl", "[1]\n", r"line 1: \[1\], expected an object"),
        ("rte", "rte/train.jsonl", "[" * 100_000, "line 1: .*; expected JSON"),
        ("rte", "rte/train.jsonl", '{"premise": 5, "hypothesis": "x", "label": "entailment"}', "premise is 5"),
        ("multirc", MULTIRC, '{"passage": "x"}', "line 1: passage is 'x', expected an object"),
        ("multirc", MULTIRC, '{"passage": {"text": "1", "questions": []}}', r"questions is \[\], expected a list"),
        ("record", RECORD, '{"passage": {"text": "x", "entities": [{"start": 0, "end": 1}]}, "qas": [{}]}',
         "end is 1, expected a place in 1 characters"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line(data, task, name, content, complaint):
    write_file(data, name, content)
    with pytest.raises(ConfigError, match=complaint):
        draw(find(task), data, "train")


def test_a_file_that_is_no_text_is_named(data):
    (data / "sst2" / "train.tsv").write_bytes(b"label\tsentence\n1\t\xff\n")
    with pytest.raises(ConfigError, match=r"train\.tsv: .*expected rows in UTF-8"):
        draw(find("sst2"), data, "train")


def test_a_family_draws_a_prompt_of_each_task_in_turn(data):
    prompts = draw(Glue(), data, "train", seed=3)
    names = [member.name for member in Glue.members]
    assert [prompt.task for prompt in prompts[:8]] == names
    alone = {name: draw(find(name), data, "train", seed=3) for name in names}
    for name in names:
        assert [prompt for prompt in prompts if prompt.task == name] == alone[name]
    assert draw(Glue(), data, "train", seed=3, limit=5) == prompts[:5]
    assert sorted(prompt.encode() for prompt in prompts) == sorted(p.encode() for p in Glue().prompts(data, "train"))


def test_some_tasks_of_a_family_can_be_chosen(data):
    prompts = draw(find("superglue", ["tasks=rte, cb"]), data, "train")
    assert [prompt.task for prompt in prompts] == ["cb", "rte", "rte"]
    with pytest.raises(ConfigError, match="no task 'sst' in glue; did you mean sst2"):
        find("glue", ["tasks=sst,rte"])


def test_what_a_family_lacks_is_named_with_the_tasks_that_are_there(data):
    (data / "copa" / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"lacks copa/train\.jsonl.*--args tasks=boolq,cb,multirc,record,rte,wic,wsc"):
        draw(find("superglue"), data, "train")
    with pytest.raises(ConfigError, match="lacks copa/train") as caught:
        draw(find("superglue", ["tasks=copa"]), data, "train")
    assert "--args tasks=" not in str(caught.value)


@pytest.mark.skipif(DATA is None, reason="ASYNCFLOW_DATA names no directory with the data sets")
@pytest.mark.parametrize("name", MEMBERS)
def test_the_data_sets_themselves_are_understood(name):
    registry.load()
    task, data = find(name), Path(str(DATA))
    if missing := [
        file for split in ("train", "held_out") for file in task.files(split) if not (data / file).is_file()
    ]:
        pytest.skip(f"no {', '.join(missing)}")
    splits = {split: draw(task, data, split) for split in ("train", "held_out")}
    assert not {prompt.prompt_id for prompt in splits["train"]} & {prompt.prompt_id for prompt in splits["held_out"]}
    for prompts in splits.values():
        for prompt in prompts[:300]:
            assert gold_reward(prompt) == 1
            assert len(prompt.messages[0].content) < 6000
        answers = Counter(str(prompt.reward.args.get("answer")) for prompt in prompts)
        assert name in ("record", "stsb") or set(answers) == set(prompts[0].reward.args["labels"])


def gold_reward(prompt):
    """What the right answer itself gets."""
    from dataclasses import replace

    entry, arguments = registry.find(prompt.reward.name), prompt.reward.args
    answer = arguments["answer"] if "answer" in arguments else arguments["references"][-1]
    sample = replace(SAMPLE, response_text=str(answer))
    return entry.thing(sample, registry.parse_arguments(entry, prompt.reward)).value
