"""From what a user names to pools, and what they are told if it cannot be."""

import pytest

from pipelines.curriculum.pools import Named, load_pools
from schemas.errors import ConfigError
from tests.support.tasks import write_data

LINE = '{{"prompt_id": "{}", "text": "1+1=", "reward": {{"name": "last_number"}}}}\n'


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine.jsonl"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def load(tasks=(), files=(), data=None):
    return load_pools([Named.task(each) for each in tasks], [Named.file(each) for each in files], data)


def test_tasks_have_their_weights_and_a_family_divides_its_own(data):
    pools = load(["gsm8k=2", "arith=1", "translation:to=fr", "glue=3:tasks=sst2,rte"], data=data)
    assert {pool.name: pool.weight for pool in pools} == {
        "gsm8k": 2, "asdiv": 0.5, "mawps": 0.5, "translation-fr": 1, "sst2": 1.5, "rte": 1.5
    }  # fmt: skip
    assert pools[0].ids == ["gsm8k/train/0", "gsm8k/train/1"]


def test_a_file_is_a_pool(write):
    first, second = write(LINE.format("a") + LINE.format("b")), write(LINE.format("c"), "x=1")
    (mine, other) = load(files=[f"{first}=2.5", second])
    assert (mine.name, mine.weight, mine.ids) == (first, 2.5, ["a", "b"])
    assert (other.name, other.weight) == (second, 1.0)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "nothing to draw from"),
        (["gsm8k=0"], "--tasks gsm8k=0: weight '0', expected a number above 0"),
        (["gsm8k=-1"], "expected a number above 0"),
        (["gsm8k=nan"], "expected a number above 0"),
        (["gsm8k=inf"], "expected a number above 0"),
        (["gsm8k="], "weight '', expected a number above 0"),
        (["gsm8q"], "no task 'gsm8q'; did you mean gsm8k?"),
        (["translation:from=fr"], "--tasks of task translation: from"),
        (["translation:french"], "--tasks 'french': expected KEY=VALUE"),
        (["svamp"], "svamp has no rows to train on"),
        (["arith=1:tasks=svamp"], "arith has no rows to train on"),
        (["gsm8k", "gsm8k=2"], "gsm8k is named twice"),
        (["arith", "asdiv=2"], "asdiv is named twice"),
        (["glue", "superglue"], "rte is named twice; name it once, with the sum of the weights, and choose the tasks"),
    ],
)
def test_what_cannot_be_drawn_is_said(data, tasks, message):
    with pytest.raises(ConfigError) as raised:
        load(tasks, data=data)
    assert message in str(raised.value)


def test_a_task_needs_its_data(tmp_path):
    with pytest.raises(ConfigError, match="gsm8k is a task: give the directory of its data with --data DIR"):
        load(["gsm8k"])
    with pytest.raises(ConfigError, match=r"lacks gsm8k/train\.jsonl"):
        load(["gsm8k"], data=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts to train on"),
        (LINE.format("a") + "{}\n", "prompt 2: bad_record"),
        (LINE.format("a") + LINE.format("a"), "'a' is in"),
        ('{"text": "1+1=", "reward": {"name": "last_number"}}\n', "prompt 1: no prompt_id"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write, text, message):
    with pytest.raises(ConfigError) as raised:
        load(files=[write(text)])
    assert message in str(raised.value)
    with pytest.raises(ConfigError, match="No such file"):
        load(files=["nowhere.jsonl=2"])
