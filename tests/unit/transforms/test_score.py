"""Rewards in killable processes: what fails is null with a reason, and nothing else suffers."""

import json
import os
import signal
import socket
import time
from dataclasses import replace

import pytest

from schemas.config import RewardsConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import ProcessDied
from schemas.identity import GroupId
from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import Group
from tests.support.samples import SAMPLE
from transforms.rewards import processes as processes_module
from transforms.rewards import registry
from transforms.rewards.processes import RewardProcesses
from transforms.rewards.scoring import SampleScore, failed, score_samples
from transforms.score import ScoreFn, Scorer, apply_scores

MODULE = "tests.unit.transforms.rewards.bad_rewards"
LIMIT_S = 0.5
registry.load([MODULE])


@pytest.fixture(scope="module")
def inherited():
    """A socket that any program started from this process would have open."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        yield listening


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    """A file of a user's, as ``rewards.modules`` names it."""
    file = tmp_path_factory.mktemp("own") / "my_rewards.py"
    file.write_text(
        "from transforms.rewards.registry import Arguments, Reward, reward\n"
        "@reward('of_my_file')\ndef mine(sample, arguments: Arguments):\n"
        "    return Reward(float(len(sample.response_text)))\n"
    )
    return str(file)


@pytest.fixture(scope="module")
def scorer(inherited, own_file):
    processes = RewardProcesses(RewardsConfig(timeout_s=LIMIT_S, memory_bytes=2 << 30, modules=(MODULE, own_file)))
    scorer = Scorer(processes)
    scorer.score_alone(RewardSpec(name="fine"), [SAMPLE])
    yield scorer
    processes.stop()


def a_thousand_s(scorer):
    """Seconds that a thousand good rewards take."""
    started = time.monotonic()
    asked = [group("fine", "a", attempt_id=str(index)) for index in range(1000)]
    for each in asked:
        scorer.begin(each)
    assert all(scorer.finish(RunConfig(), each).samples[0].reward == 2.0 for each in asked)
    return time.monotonic() - started


def test_a_reward_in_a_file_of_the_users_is_computed_in_the_process(scorer, own_file):
    registry.load([own_file])
    assert [score.value for score in scores(scorer, group("of_my_file", "abc", "a"))] == [3.0, 1.0]


@pytest.fixture(scope="module")
def full_speed_s(scorer):
    return min(a_thousand_s(scorer) for _ in range(3))


def group(reward, *texts, **changes):
    prompt = Prompt.model_validate({"text": "?", "reward": {"name": reward}})
    samples = tuple(
        replace(SAMPLE, sample_index=index, response_text=text, reward=None, reward_parts={}, **changes)
        for index, text in enumerate(texts)
    )
    return Group(GroupId(0, 38), prompt, samples, b"value")


def scores(scorer, asked):
    got = scorer.finish(RunConfig(), asked)
    if isinstance(got, DeadLetter):
        return [SampleScore(None, {}, got.detail)]
    return [SampleScore(sample.reward, sample.reward_parts, sample.reward_error) for sample in got.samples]


def test_a_score_has_value_and_parts(scorer):
    assert scores(scorer, group("fine", "a")) == [SampleScore(2.0, {"half": 1.0}, None)]


def test_what_people_rate_is_also_scored_where_the_prompt_wants_both(scorer):
    asked = group("fine", "a")
    blend = {"name": "feedback", "args": {"verifiable": {"name": "fine"}, "share": 0.25}}
    asked = replace(asked, prompt=Prompt.model_validate({"text": "?", "reward": blend}))
    got = scorer.finish(RunConfig(), asked)
    assert [(each.reward, each.reward_parts) for each in got.samples] == [
        (None, {"verifiable": 2.0, "verifiable_share": 0.25})
    ]


def test_what_people_alone_rate_passes_through(scorer):
    asked = group("feedback", "a")
    assert scorer.finish(RunConfig(), asked) is asked


FAILURES = {
    "hangs": "reward_timeout: no reward within 0.5 s",
    "ignores_sigterm": "reward_timeout: no reward within 0.5 s",
    "catches_everything": "reward_timeout: no reward within 0.5 s",
    "stops": "reward_timeout: no reward within 0.5 s",
    "dies": "reward_error: the reward's process died with exit code -9",
    "exits": "reward_error: SystemExit: 3",
    "leaves": "reward_error: the reward's process died with exit code 3",
    "leaves_as_if_all_were_well": "reward_error: the reward's process died with exit code 0",
    "closes_files": "reward_error: the reward's process died with exit code 1",
    "eats_memory": "reward_error: MemoryError: ",
    "raises": "reward_error: KeyError: 'no such thing'",
    "raises_the_unspeakable": "reward_error: UnspeakableError",
    "nan": "reward_error: not finite in 32 bits: value = nan",
    "beyond_float32": "reward_error: not finite in 32 bits: value = 1e+39",
    "has_many_parts": "reward_error: 1000 parts, at most 100 are kept",
}
"""Rewards that give none for some samples, and what is said of those."""
CHILDREN = {
    "forks_and_hangs": None,
    "starts_a_daemon_and_hangs": None,
    "leaves_a_daemon": 1.0,
    "returns_twice": 1.0,
}
"""Rewards that leave a process behind, and their value."""
NUISANCES = ["prints_a_gigabyte", "leaves_an_alarm"]


@pytest.mark.parametrize("reward", FAILURES)
def test_only_the_offending_sample_goes_without_a_reward(scorer, reward):
    got = scores(scorer, group(reward, "good", "bad", "good"))
    assert [score.value for score in got] == [1.0, None, 1.0]
    assert got[1].error == FAILURES[reward]


@pytest.mark.parametrize("reward", ["hangs", "dies", "closes_files"])
def test_calls_that_travel_together_fail_alone(scorer, reward):
    asked = [group(reward, "bad" if index == 7 else "good", attempt_id=str(index)) for index in range(20)]
    for each in asked:
        scorer.begin(each)
    got = [scores(scorer, each)[0] for each in asked]
    assert [score.value for score in got] == [None if index == 7 else 1.0 for index in range(20)]
    assert got[7].error == FAILURES[reward]


@pytest.mark.parametrize("reward", ["ignores_sigterm", "catches_everything", "starts_a_daemon_and_hangs"])
@pytest.mark.timed
def test_a_reward_that_cannot_be_asked_to_end_is_killed_at_once(scorer, reward, tmp_path):
    def seconds():
        started = time.monotonic()
        scores(scorer, group(reward, "bad", worker=str(tmp_path / "pid")))
        return time.monotonic() - started

    limit_s = 2 * LIMIT_S + 1.5
    assert any(seconds() < limit_s for _ in range(5)), "a group and a sample of 0.5 s each, and little more"


@pytest.mark.parametrize("reward", [*FAILURES, *CHILDREN, *NUISANCES])
@pytest.mark.timed
def test_after_a_bad_reward_a_thousand_run_at_full_speed(scorer, full_speed_s, reward, tmp_path):
    scores(scorer, group(reward, "bad", worker=str(tmp_path / "pid")))
    limit_s = max(3 * full_speed_s, full_speed_s + 1.0)
    assert any(a_thousand_s(scorer) < limit_s for _ in range(5)), "what delays one of them is the machine"


@pytest.mark.parametrize("reward", CHILDREN)
def test_what_a_reward_started_ends_with_it(scorer, reward, tmp_path):
    (score,) = scores(scorer, group(reward, "bad", worker=str(tmp_path / "pid")))
    assert score.value == CHILDREN[reward]
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the forked process still runs")


def test_a_process_has_none_of_our_files_and_prints_nowhere(scorer, inherited, tmp_path):
    assert os.readlink(f"/proc/self/fd/{inherited.fileno()}").startswith("socket:")
    assert scores(scorer, group("lists_its_files", "a", worker=str(tmp_path / "files")))[0].value == 1.0
    files = json.loads((tmp_path / "files").read_text())
    assert {files.pop(standard) for standard in "012"} == {os.devnull}
    ours = {os.readlink(f"/proc/self/fd/{number}") for number in _open_files()}
    assert not {file for file in files.values() if file.startswith("socket:")} & ours
    assert len(files) <= 8, f"its pipe, its shared memory, those of multiprocessing, and the two it opened: {files}"


def _open_files():
    return [number for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]


def test_a_gigabyte_of_output_is_dropped(scorer):
    (score,) = scores(scorer, group("prints_a_gigabyte", "bad"))
    assert (score.value, score.error) == (1.0, None)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_let_go_of_takes_no_process_from_others(begun):
    processes = RewardProcesses(RewardsConfig(processes=1))
    processes.submit(os.getpid).result(60)
    let_go = processes.submit(time.sleep, 0.2)
    time.sleep(0.1 * begun)
    let_go.cancel()
    assert processes.submit(os.getpid).result(20) != os.getpid()
    processes.stop()


def test_a_process_that_cannot_be_started_is_told_and_tried_again(monkeypatch):
    def refuse(_config):
        monkeypatch.undo()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes_module, "_RewardProcess", refuse)
    processes = RewardProcesses(RewardsConfig(processes=1))
    with pytest.raises(ProcessDied, match=r"can be started: .*temporarily unavailable"):
        processes.submit(os.getpid).result(20)
    assert processes.submit(os.getpid).result(60) != os.getpid()
    processes.stop()


def test_a_result_that_is_no_reward_is_an_error():
    (score,) = score_samples(RewardSpec(name="returns_text"), [SAMPLE])
    assert score == failed("reward_error", "returned str, expected a Reward")


def test_apply_scores_keeps_null_beside_its_reason():
    got = apply_scores(
        RunConfig(), group("fine", "a", "b"), [SampleScore(1.0, {"x": 1.0}, None), failed("reward_error", "x")]
    )
    assert [sample.reward for sample in got.samples] == [1.0, None]
    assert [sample.reward_error for sample in got.samples] == [None, "reward_error: x"]
    assert got.samples[0].reward_parts == {"x": 1.0}


@pytest.mark.parametrize(("second", "reason"), [("reward_timeout", "reward_timeout"), ("reward_error", "reward_error")])
def test_a_group_without_any_reward_is_a_dead_letter(second, reason):
    letter = apply_scores(RunConfig(), group("fine", "a", "b"), [failed("reward_error", "x"), failed(second, "y")])
    assert isinstance(letter, DeadLetter)
    assert (letter.stage, letter.reason, letter.topic, letter.group) == ("score", reason, "demo.prompts", (0, 38))


def conversations(*rewards, errors=None, reward="environment"):
    """A group whose environment has given these rewards."""
    asked = group("fine", *("?" for _ in rewards))
    errors = errors or [None] * len(rewards)
    samples = [
        replace(sample, reward=given, reward_parts={} if given is None else {"won": given}, reward_error=error)
        for sample, given, error in zip(asked.samples, rewards, errors, strict=True)
    ]
    prompt = Prompt.model_validate(
        {"token_ids": [7], "reward": {"name": reward}, "environment": {"name": "guess_number", "args": {"secret": 1}}}
    )
    return replace(asked, prompt=prompt, samples=tuple(samples))


def test_the_environments_rewards_pass_through(beam_scorer):
    made = beam_scorer(conversations(0.5, None, errors=[None, "environment_timeout: late"]))
    assert [(sample.reward, sample.reward_parts) for sample in made.samples] == [(0.5, {"won": 0.5}), (None, {})]
    assert made.samples[1].reward_error == "environment_timeout: late"


def test_a_group_of_which_every_environment_failed_is_a_dead_letter_with_its_reason(beam_scorer):
    letter = beam_scorer(conversations(None, None, errors=["environment_error: x", "environment_timeout: y"]))
    assert (letter.stage, letter.reason, letter.detail) == ("score", "environment_timeout", "environment_error: x")


def test_a_function_gives_no_reward_to_a_sample_that_its_environment_failed(beam_scorer):
    made = beam_scorer(conversations(None, None, errors=[None, "environment_error: x"], reward="fine"))
    assert [sample.reward for sample in made.samples] == [2.0, None]
    assert made.samples[1].reward_error == "environment_error: x"


@pytest.fixture
def beam_scorer(scorer):
    """From a group to what Score makes of it, as in a bundle."""
    function = ScoreFn(RunConfig())
    function._scorer = scorer

    def score(group):
        function.start_bundle()
        function.process(group, 0)
        (made,) = function.finish_bundle()
        return made.value

    return score
