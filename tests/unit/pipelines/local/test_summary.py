"""What a run leaves for people: the demo's prompts, the summary."""

import pytest

from pipelines.audit import audit
from pipelines.local.demo_prompts import from_file, sums
from pipelines.local.summary import summarise
from pipelines.log import RunLog
from schemas.errors import ConfigError
from schemas.ledger import DroppedGroup, StartEntry, StepEntry


def step(number, reward, dropped=()):
    metrics = {"reward_mean": reward, "staleness_max": 1.0}
    return StepEntry(generation=1, step=number, version=number + 1, trained=(), dropped=dropped, metrics=metrics)


DROP = DroppedGroup(group=(0, 1), at=(0, 1), reason="zero_variance")
LINE = [step(1, 0.1), step(2, 0.2), step(3, 0.3, (DROP,)), step(4, 0.9)]


@pytest.fixture
def summary():
    log = RunLog(ledger=[StartEntry(generation=1), *LINE])
    return summarise(
        log, audit("x", log), held_out=(0.1, 0.8), updates_in_flight=2, tokens_generated=100,
        seconds_to_first_step=3.21, seconds_total=9.87,
    )  # fmt: skip


def test_the_summary_compares_the_first_and_the_last_three_steps(summary):
    assert (summary.reward_first3, summary.reward_last3) == (0.2, 0.4667)
    assert summary.groups_dropped == {"zero_variance": 1}
    assert (summary.steps, summary.seconds_to_first_step, summary.seconds_total) == (4, 3.2, 9.9)


def test_sums_hold_out_what_they_never_train_and_depend_on_the_seed():
    prompts = sums(0)
    assert len(prompts.train) == 75
    assert not any(prompt in prompts.train for prompt in prompts.held_out)
    assert prompts == sums(0) != sums(1)
    stream = [prompt.prompt_id for prompt in prompts.stream(150, 0)]
    assert sorted(stream[:75]) == sorted(stream[75:])
    assert stream[:75] != stream[75:]


def test_a_file_keeps_its_last_tenth_and_its_bad_lines_apart(tmp_path):
    line = '{"text": "%d", "reward": {"name": "exact_match", "args": {"answer": "x"}}}'
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*(line % number for number in range(20)), "rubbish", ""]))
    prompts = from_file(path)
    assert [prompt.text for prompt in prompts.held_out] == ["18", "19"]
    assert len(prompts.train) == 18
    assert prompts.rejected == (b"rubbish",)


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("rubbish\n", "first refused line: not_json")])
def test_a_file_without_prompts_is_named(tmp_path, content, words):
    path = tmp_path / "prompts.jsonl"
    if content:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        from_file(path)
