"""Tasks on data sets of a few rows, and which of their prompts are drawn."""

import gzip

import pytest

from pipelines.evaluation.prompts import read_held_out
from pipelines.submit import write_lines
from pipelines.tasks.draw import draw, judged_by_people, repeated
from pipelines.tasks.registry import TASKS, find
from pipelines.tasks.support import LABELS, Support
from pipelines.tasks.translation import Translation
from schemas.errors import ConfigError
from schemas.prompts import Prompt
from tests.support.tasks import MESSAGES, SENTENCES, write_data, write_messages, write_sentences
from transforms.rewards import registry


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


def test_a_sentence_becomes_a_prompt_whose_reward_is_its_translation(data):
    first = next(Translation(to="fr").prompts(data, "train"))
    assert first.prompt_id == "translation-fr/train/0"
    assert first.task == "translation-fr"
    assert [(turn.role, turn.content) for turn in first.messages] == [("user", "Translate into French: A dog runs.")]
    assert first.reward.model_dump() == {"name": "chrf", "args": {"reference": "Un chien court."}}


def test_german_is_what_translation_is_into_if_nothing_is_said(data):
    references = [prompt.reward.args["reference"] for prompt in find("translation").prompts(data, "train")]
    assert references == [german for _, german, _ in SENTENCES]


def test_the_held_out_split_is_another_file_with_other_names(data):
    held_out = list(Translation().prompts(data, "held_out"))
    assert [prompt.prompt_id for prompt in held_out] == [f"translation-de/held_out/{row}" for row in range(5)]
    assert held_out[0].messages[0].content == "Translate into German: It is raining."
    assert Support().files("held_out") == ("bitext/test.csv",)


def test_a_message_becomes_a_prompt_whose_reward_is_its_category_in_words(data):
    prompts = list(Support().prompts(data, "train"))
    assert [prompt.reward.args["answer"] for prompt in prompts] == ["refund", "shipping address", "order"]
    assert prompts[0].messages[0].content.startswith(f"{MESSAGES[0][0]}\n\n")
    assert all(label in prompts[0].messages[0].content for label in LABELS)


@pytest.mark.parametrize("name", TASKS)
def test_every_reward_of_a_task_understands_its_arguments(data, name):
    registry.load()
    splits = [split for split in ("train", "held_out") if find(name).files(split)]
    assert "held_out" in splits
    for split in splits:
        assert draw(find(name), data, split)
        for prompt in find(name).prompts(data, split):
            registry.check(prompt.reward)
            assert Prompt.decode(prompt.encode()) == prompt


def test_the_order_is_that_of_the_seed_and_a_limit_leaves_its_beginning(data):
    orders = [[prompt.prompt_id for prompt in draw(Translation(), data, "train", seed=seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == [f"translation-de/train/{row}" for row in range(5)]
    assert [prompt.prompt_id for prompt in draw(Translation(), data, "train", seed=1, limit=2)] == orders[0][:2]


def test_people_judge_beside_the_function_or_alone(data):
    prompts = draw(Translation(), data, "train")
    (blended, *_), (alone, *_) = judged_by_people(prompts, 0.5), judged_by_people(prompts, 0.0)
    assert (blended.reward.name, blended.feedback.share) == ("feedback", 0.5)
    assert blended.function == prompts[0].reward
    assert (alone.reward.name, alone.function) == ("feedback", None)
    assert Prompt.decode(blended.encode()) == blended


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="--feedback-share"):
        judged_by_people([], share)


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("translat", [], "did you mean translation"),
        ("xyz", [], "there are support, translation, .*arith, .*svamp"),
        ("translation", ["to=cs"], "to: Input should be 'de' or 'fr'"),
        ("translation", ["from=de"], "from"),
        ("translation", ["fr"], "expected KEY=VALUE"),
        ("support", ["to=fr"], "to"),
    ],
)
def test_what_cannot_be_asked_for_is_named(name, arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        find(name, arguments)


def test_a_missing_file_is_named_before_anything_is_read(tmp_path):
    write_sentences(tmp_path, "train.en", ["A dog runs."])
    with pytest.raises(ConfigError, match=r"lacks multi30k/train\.de\.gz; give the directory"):
        draw(Translation(), tmp_path, "train")


def test_files_that_hold_something_else_are_named(data):
    write_sentences(data, "train.de", ["Ein Hund rennt."])
    with pytest.raises(ConfigError, match="have 5 and 1 lines"):
        draw(Translation(), data, "train")
    write_sentences(data, "train.de", ["Ein Hund rennt.", "", "Es regnet.", "a", "b"])
    with pytest.raises(ConfigError, match=r"train\.de\.gz, line 2: blank"):
        draw(Translation(), data, "train")
    whole = gzip.compress(b"Ein Hund rennt.\n")
    for broken in (b"not gzip", whole[:-12], whole[:12] + b"xxxx" + whole[16:], gzip.compress(b"\xff\n")):
        (data / "multi30k" / "train.de.gz").write_bytes(broken)
        with pytest.raises(ConfigError, match="expected gzipped text"):
            draw(Translation(), data, "train")


def test_a_table_that_holds_something_else_is_named(data):
    write_messages(data, "train", [*MESSAGES, ("hello", "WEATHER")])
    with pytest.raises(ConfigError, match="line 5: category 'weather', expected one of account"):
        draw(Support(), data, "train")
    (data / "bitext" / "train.csv").write_text("text,category\nhello,ORDER\n")
    with pytest.raises(ConfigError, match="no column utterance"):
        draw(Support(), data, "train")
    (data / "bitext" / "train.csv").write_text("utterance,category\n")
    with pytest.raises(ConfigError, match=r"no rows in bitext/train\.csv"):
        draw(Support(), data, "train")
    (data / "bitext" / "train.csv").write_bytes(b"utterance,category\n\xff,ORDER\n")
    with pytest.raises(ConfigError, match="expected CSV in UTF-8"):
        draw(Support(), data, "train")


def test_a_limit_below_one_is_refused(data):
    with pytest.raises(ConfigError, match="--limit 0"):
        draw(Support(), data, "train", limit=0)


def test_prompts_in_a_file_are_those_of_an_evaluation(data, tmp_path):
    prompts = draw(Translation(), data, "held_out")
    file = tmp_path / "held-out.jsonl"
    assert write_lines(file, [prompt.encode() for prompt in prompts]) == 5
    assert list(read_held_out(file).prompts) == prompts
    with pytest.raises(ConfigError, match="exists; give a file that does not exist yet"):
        write_lines(file, [])
    with pytest.raises(TypeError):
        write_lines(tmp_path / "torn.jsonl", [b"{}", None])
    assert not (tmp_path / "torn.jsonl").exists()


OWN = """
from pipelines.tasks.task import Task
from schemas.prompts import RewardSpec
class Mine(Task):
    name = "mine"
    title = "rows.txt"
    mark: str = "?"
    def files(self, split):
        return ("rows.txt",)
    def rows(self, data, split):
        for line in (data / "rows.txt").read_text().split():
            yield line + self.mark, RewardSpec(name="exact_match", args={"answer": line})
"""


def test_a_task_in_a_file_of_the_users_is_found_and_told_like_another(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    (tmp_path / "rows.txt").write_text("one two")
    asked = [prompt.messages[0].content for prompt in find(str(file), ["mark=!"]).prompts(tmp_path, "train")]
    assert asked == ["one!", "two!"]
    with pytest.raises(ConfigError, match=r"--args of task .*mine\.py: mark2"):
        find(str(file), ["mark2=!"])


def test_what_a_users_task_stumbles_over_is_told_with_the_row_and_the_line(tmp_path):
    file = tmp_path / "stumbles.py"
    file.write_text(OWN.replace('"answer": line', '"answer": line[2]'))
    (tmp_path / "rows.txt").write_text("one two of")
    with pytest.raises(ConfigError, match=r"task mine: IndexError: .*\(stumbles\.py, line 12\), after 2 rows"):
        draw(find(str(file)), tmp_path, "train")


@pytest.mark.parametrize(("code", "found"), [("x = 1\n", "none"), (OWN + OWN.replace("Mine", "Other"), "Mine, Other")])
def test_a_file_that_defines_no_task_or_several_is_refused(tmp_path, code, found):
    file = tmp_path / "wrong.py"
    file.write_text(code)
    with pytest.raises(ConfigError, match=f"expected one class that is a Task .*, found {found}"):
        find(str(file))


def test_epochs_hold_every_prompt_in_orders_of_their_own(data):
    prompts = draw(Translation(), data, "train", seed=1)
    three = repeated(prompts, 3, seed=1)
    rounds = [[prompt.prompt_id for prompt in three[start : start + 5]] for start in (0, 5, 10)]
    assert rounds[0] == [prompt.prompt_id for prompt in prompts]
    assert {tuple(sorted(each)) for each in rounds} == {tuple(sorted(rounds[0]))}
    assert rounds[1] != rounds[0]
    assert repeated(prompts, 3, seed=1) == three
    with pytest.raises(ConfigError, match="--epochs 0: expected 1 or more"):
        repeated(prompts, 0, seed=1)
