"""What the watch concludes from a log."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import BadStatusLine
from io import BytesIO

import pytest

from pipelines.drill import watch as module
from pipelines.drill.watch import Watch, is_good, is_reward_right, read_counter
from pipelines.log import RunLog
from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.ledger import Position, StartEntry, StepEntry, TrainedGroup
from schemas.weights import WeightVersion
from tests.support.samples import SAMPLE, group

AT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def step(number, at, attempt):
    trained = TrainedGroup(group=GroupId(0, 38), at=(0, number), attempt=attempt, samples=2, versions=(1, 1))
    metrics = {"seconds_train": 2.0, "seconds_held": 0.5}
    return StepEntry(
        generation=1, step=number, version=number + 1, trained=(trained,), dropped=(), at=at, metrics=metrics
    )


def announced(number):
    named = {"manifest_sha256": "ab" * 32, "dtype": "float32", "base_model": "tiny"}
    return WeightVersion(version=number + 1, step=number, generation=1, **named)


def frontier(number):
    return AdmissionFrontier(version=number + 1, generation=1, frontier={0: 0})


@pytest.fixture
def watch():
    return Watch(RunConfig(), ["http://worker"])


def test_the_loop_works_again_when_what_was_generated_after_the_fault_is_trained(watch):
    over = AT + timedelta(seconds=10)
    watch._on_group(group(attempt_id="before", generated_at=AT))
    watch.line = [step(1, over + timedelta(seconds=1), "before")]
    assert watch.recovered_at(over) is None
    watch._on_group(group(attempt_id="after", generated_at=over + timedelta(seconds=2)))
    watch.line.append(step(2, over + timedelta(seconds=3), "after"))
    assert watch.recovered_at(over) == over + timedelta(seconds=3)


def test_a_count_needs_two_audits_in_a_row(watch):
    half = RunLog(ledger=[StartEntry(generation=1), step(1, AT, "a")])
    watch._take(half, AT)
    assert watch.counts["half_commits"] == 0
    watch._take(half, AT)
    assert watch.counts["half_commits"] > 0


def test_looks_in_between_at_two_steps_in_a_row_are_no_fault(watch):
    start, whole = StartEntry(generation=1), RunLog()
    for number in (1, 2):
        whole.ledger = [start, *(step(each, AT, "a") for each in range(1, number + 1))]
        whole.weights = [announced(each) for each in range(1, number)]
        whole.admission = [frontier(each) for each in range(1, number)]
        watch._take(whole, AT)
        assert watch.verdict.half_commits > 0
    assert watch.counts["half_commits"] == 0


def test_productive_seconds_are_those_of_surviving_steps_in_the_window(watch):
    watch.line = [step(number, AT + timedelta(seconds=number), "a") for number in range(1, 5)]
    assert watch.productive_s(AT + timedelta(seconds=1), AT + timedelta(seconds=3)) == 5.0
    assert watch.steps_per_minute(AT + timedelta(seconds=1), AT + timedelta(seconds=3)) == 60.0


@pytest.mark.parametrize(
    ("prompt_id", "text", "reward", "right"),
    [
        ("drill_share/7", "7071", 0.5, True),
        ("drill_share/7", "7071", 0.25, False),
        ("drill_share/7", "7071", None, True),
        ("drill_hang/7", "7071", None, True),
        ("drill_hang/7", "7071", 0.0, False),
        ("drill_nan/7", "7071", 0.0, False),
    ],
)
def test_a_reward_is_right_if_it_can_be_computed_again(prompt_id, text, reward, right):
    error = None if reward is not None else "reward_timeout: …"
    sample = replace(SAMPLE, prompt_id=prompt_id, response_text=text, reward=reward, reward_error=error)
    assert is_reward_right(sample) is right


def test_a_null_reward_without_a_reason_is_wrong():
    assert not is_reward_right(replace(SAMPLE, prompt_id="drill_share/7", reward=None, reward_error=None))


def test_a_counter_is_the_sum_of_its_series():
    text = '# HELP x\nx{engine="0"} 12.0\nx{engine="1"} 30\nx_created 7\nxy 100\n'
    assert read_counter(text, "x") == 42


def test_tokens_of_a_restarted_engine_are_added(watch):
    for total in (100, 250, 40, 60):
        watch._count("http://worker", total)
    assert watch.tokens_generated == 310


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (b'{"prompt_id": "drill_share/7"}', True),
        (b'{"prompt_id": "drill_hang/7"}', False),
        (b"{", False),
        (b"[]", False),
    ],
)
def test_a_good_prompt_is_told_from_those_that_must_fail(value, good):
    assert is_good(DeadLetter.of("generate", "engine_killed", "…", ("drill.prompts", 0, 1), value)) is good


def test_a_stall_is_without_steps_that_survived_until_its_end(watch):
    at = [AT + timedelta(seconds=seconds) for seconds in range(41)]
    restart = StartEntry(generation=2, continues=Position(generation=1, step=1), at=at[25])
    watch.log.ledger = [step(1, at[10], "a"), step(2, at[22], "a"), restart, step(2, at[30], "a")]
    assert watch.longest_stall_s(AT, at[24]) == 12.0  # step 2 was there then
    assert watch.longest_stall_s(AT, at[40]) == 20.0
    assert watch.longest_stall_s(at[31], at[40]) == 9.0


def test_a_worker_that_talks_rubbish_does_not_hide_the_others(monkeypatch):
    answers = {"one": b"{}", "two": b"[1]", "three": b'{"version": "x"}', "four": b"\xff", "six": b'{"version": 7}'}

    def answer(url, timeout):
        name, _, path = url.removeprefix("http://").partition("/")
        if name == "five":
            raise BadStatusLine("?")
        return BytesIO(answers[name] if path == "asyncflow/status" else b"vllm:generation_tokens_total 12.0\n")

    monkeypatch.setattr(module, "urlopen", answer)
    monkeypatch.setattr(module, "_LOOK_PAUSE_S", 0.0)
    names = ["one", "two", "three", "four", "five", "six"]
    watch = Watch(RunConfig(), [f"http://{name}" for name in names])
    watch._count = lambda url, total: watch.stop()  # only the last gets there
    watch._look_on()
    assert watch.served == {7}


def test_a_watch_is_told_whom_to_ask():
    with pytest.raises(TypeError, match="workers"):
        Watch(RunConfig())
