"""A calibration from what a log says: of a run whose speeds are known, because it was made of them."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.log import RunLog
from pipelines.plan.calibration import EngineSpeed, load_calibration, save_calibration
from pipelines.plan.engine import Engine, Group
from pipelines.plan.lengths import mean_length
from pipelines.plan.measure import Run, calibrate
from pipelines.plan.observe import Answered, Observed, answered, complete
from pipelines.plan.occupancy import beginnings
from schemas.config import RunConfig
from schemas.errors import RunError
from schemas.identity import GroupId
from schemas.ledger import DroppedGroup, Numerics, Position, Settings, StartEntry, StepEntry, TrainedGroup
from tests.support.samples import group

START_S = 1_800_000_000.0
SIZE = 4
CONFIG = RunConfig.model_validate(
    {"name": "made", "rollout": {"max_in_flight": 6, "group_size": SIZE}, "worker": {"max_num_seqs": 16}}
)


def observed(speed, places=6, groups=400, frontiers=None):
    """What the log of a run says in which an engine of that speed always had so many groups."""
    draw, engine, begun = random.Random(1), Engine(speed), {}

    def ask(now_s):
        lengths = [float(min(400, max(1, round(draw.lognormvariate(3.5, 0.8))))) for _ in range(SIZE)]
        group = Group(lengths, 0.0, 0)
        begun[group] = len(begun)
        engine.ask(group, now_s)

    found = Observed(frontiers=frontiers or {0: ([10**9], [START_S])})
    for _ in range(places):
        ask(0.0)
    while len(found.answered) < groups:
        now_s = engine.next_end_s()
        if ended := engine.end_sequence(now_s):
            found.answered.append(entry(begun[ended], ended, START_S + now_s))
            ask(now_s)
    return found


def entry(number, group, end_s):
    lengths = tuple(int(length) for length in group.lengths)
    return Answered(GroupId(0, number), "http://engine", lengths, 7, START_S, end_s, end_s + 0.25)


def at(seconds):
    return datetime.fromtimestamp(START_S, UTC) + timedelta(seconds=seconds)


def step(number, tokens, seconds, **metrics):
    trained = TrainedGroup(
        group=GroupId(0, number), at=(0, number), attempt="a", samples=SIZE, versions=(number, number)
    )
    dropped = DroppedGroup(group=GroupId(1, number), at=(1, number), reason="zero_variance")
    figures = {"tokens": tokens, "seconds_train": seconds, "seconds_publish": 0.3, **metrics}
    return StepEntry(generation=1, step=number, version=number + 1, trained=(trained,),
                     dropped=(dropped,) if number % 2 else (), metrics=figures, at=at(10 * number))  # fmt: skip


def made(speed, **changes):
    found = observed(speed, **changes)
    numerics = Numerics(torch="x", device="x", threads=1, ranks=2)
    found.start = StartEntry(generation=1, settings=Settings(max_staleness=3, groups_per_step=5), numerics=numerics)
    sizes = [1000, 1500, 3000, 500, 2500, 4000, 800, 3500]
    found.steps = [step(number, tokens, 0.5 + 1e-3 * tokens) for number, tokens in enumerate(sizes, 1)]
    return found


def test_every_value_is_found_again_and_says_where_it_is_from():
    run = made(EngineSpeed(slots=16, step_s=0.02))
    found = calibrate([Run(CONFIG, run)])
    assert found.engine.step_s == pytest.approx(0.02, rel=0.05)
    assert (found.engine.slots, found.engine.sequence_s, found.workload.group_size) == (16, 0, SIZE)
    assert (found.workload.groups_per_step, found.workload.max_staleness) == (5, 3)
    lengths = [length for each in run.answered for length in each.lengths]
    assert mean_length(found.workload.response_tokens) == pytest.approx(sum(lengths) / len(lengths), rel=0.03)
    assert found.workload.kept_share == pytest.approx(8 / 12)
    assert found.learner.fixed_s == pytest.approx(0.5)
    assert found.learner.token_s == pytest.approx(2e-3), "of one of the two ranks"
    assert (found.learner.publish_s, found.log.latency_s) == (0.3, pytest.approx(0.25))
    assert "12.5 sequences at once" in found.sources["engine.step_s"]


def test_two_runs_tell_how_speed_depends_on_the_batch():
    speed = EngineSpeed(slots=16, step_s=0.02, sequence_s=0.001)
    full, light = made(speed, places=6), made(speed, places=1)
    few = CONFIG.model_copy(update={"rollout": CONFIG.rollout.model_copy(update={"max_in_flight": 1})})
    found = calibrate([Run(CONFIG, full), Run(few, light)]).engine
    for sequences in (3, 8, 16):
        assert found.decoding_step_s(sequences) == pytest.approx(speed.decoding_step_s(sequences), rel=0.1)


def test_steps_of_one_size_charge_everything_to_tokens():
    run = made(EngineSpeed(slots=16, step_s=0.02))
    run.steps = [step(number, 1000, 2.0) for number in range(1, 8)]
    found = calibrate([Run(CONFIG, run)])
    assert (found.learner.fixed_s, found.learner.token_s) == (0, pytest.approx(2 * 2.0 / 1000))
    assert "all of it charged to tokens" in found.sources["learner.token_s"]


def test_what_workers_logged_of_versions_under_way(tmp_path):
    (tmp_path / "logs").mkdir()
    line = (
        "2026-11-28T15:12:19Z [info     ] version_applied      in_flight={} load_s=0.02 open_s={} pause_s={} seen_s=0.1"
    )
    lines = [line.format(False, 9, 9), line.format(True, 0.3, 0.06), line.format(True, 0.5, 0.08)]
    (tmp_path / "logs" / "worker-1.log").write_text("\n".join(lines))
    found = calibrate([Run(CONFIG, made(EngineSpeed(slots=16, step_s=0.02)), tmp_path)])
    assert (found.weights.fetch_s, found.weights.pause_s) == (pytest.approx(0.5), pytest.approx(0.07))
    assert "median of 2 versions" in found.sources["weights.pause_s"]


def test_a_prompt_begins_when_it_is_admitted():
    run = Observed(frontiers={0: ([4, 8], [START_S + 1, START_S + 9])})
    first, second, later = (entry(number, Group([3.0], 0.0, 0), START_S + 10) for number in (3, 4, 8))
    run.answered = [later, second, first]
    begun = {group.group.offset: begin_s - START_S for begin_s, group in beginnings(run, places=8)}
    assert begun == {3: 1, 4: 9, 8: 0}, "of the last one the log does not say when"
    waited = {group.group.offset: begin_s - START_S for begin_s, group in beginnings(run, places=8, fetch_s=0.5)}
    assert (waited[3], waited[4]) == (1.5, 9.5), "for weights"


def test_a_prompt_begins_when_a_place_is_free():
    run = Observed(frontiers={0: ([10], [START_S])})
    run.answered = [entry(number, Group([3.0], 0.0, 0), START_S + end) for number, end in enumerate((4, 2, 5, 9))]
    assert [begin_s - START_S for begin_s, _ in beginnings(run, places=2)] == [0, 0, 2, 4]


def test_what_a_run_did_itself():
    rates = made(EngineSpeed(slots=16, step_s=0.02)).rates()
    assert (rates.steps, rates.step_s, rates.samples_per_s) == (5, 10, pytest.approx(SIZE / 10))
    assert rates.staleness_mean == 0
    assert Observed().rates() is None


def test_a_run_that_says_too_little_is_told():
    with pytest.raises(RunError, match="no answers yet"):
        complete(Observed(), RunLog(), "new")
    run = observed(EngineSpeed(slots=16, step_s=0.02))
    with pytest.raises(RunError, match="no steps that say how long"):
        calibrate([Run(CONFIG, run)])
    run.answered = run.answered[:1] * 2
    run.answered[0] = run.answered[1]
    run.frontiers = {0: ([10**9], [run.answered[0].end_s])}
    with pytest.raises(RunError, match="too short to say"):
        calibrate([Run(CONFIG, run)])


def test_of_a_run_that_was_resumed_only_what_came_after_counts():
    """Before it the engine was three times as slow, the learner slept for hours, and ten times slower too."""
    run, before = made(EngineSpeed(slots=16, step_s=0.02)), observed(EngineSpeed(slots=16, step_s=0.06))
    expected = calibrate([Run(CONFIG, run)])
    expected_rates = run.rates()
    hours = 10_000
    old = [replace(each, prompt_s=each.prompt_s - hours, end_s=each.end_s - hours) for each in before.answered]
    run.answered = [*old, *run.answered]
    run.frontiers = {0: ([10**9], [START_S - hours])}
    first = [step(number, 1000, 20.0).model_copy(update={"at": at(100 * number - hours)}) for number in range(1, 9)]
    second = [
        each.model_copy(update={"step": each.step + 8, "version": each.version + 8, "generation": 2})
        for each in run.steps
    ]
    again = run.start.model_copy(update={"generation": 2, "continues": Position(generation=1, step=8), "at": at(0)})
    found = complete(run, RunLog(ledger=[run.start, *first, again, *second]), "resumed")
    calibrated = calibrate([Run(CONFIG, found)])
    for section in ("workload", "engine", "learner", "log"):
        assert getattr(calibrated, section) == getattr(expected, section)
    rates = found.rates()
    assert (rates.step_s, rates.tokens_per_s) == (expected_rates.step_s, expected_rates.tokens_per_s)
    for key in ("workload.response_tokens", "engine.step_s", "learner.token_s", "log.latency_s"):
        assert "since the newest start: " in calibrated.sources[key]
        assert "since" not in expected.sources[key]


def test_a_run_without_answers_since_it_was_resumed_is_told():
    run = made(EngineSpeed(slots=16, step_s=0.02))
    starts = [run.start, run.start.model_copy(update={"generation": 2, "at": at(100_000)})]
    with pytest.raises(RunError, match="run 'slow' since the newest start has no answers yet"):
        complete(run, RunLog(ledger=starts), "slow")


def test_the_facts_of_a_group():
    found = answered(group(partition=1, offset=4, size=2), 5.0)
    assert (found.group, found.lengths, found.prompt_tokens, found.read_s) == (GroupId(1, 4), (3, 3), 3, 5.0)
    assert found.end_s - found.prompt_s == 1


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    found = calibrate([Run(CONFIG, made(EngineSpeed(slots=16, step_s=0.02)))])
    save_calibration(found, tmp_path / "plan.toml")
    assert load_calibration(tmp_path / "plan.toml") == found
