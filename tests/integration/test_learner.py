"""The learner on a real broker: the instrument of tests/support/trajectories.py plays everything else."""

import logging
import os
import signal
import threading
from collections import Counter
from dataclasses import replace

import pytest

from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, ConfigError, FencedError, StateError
from schemas.identity import GroupId
from schemas.ledger import CheckpointEntry, Position, StartEntry, StepEntry, surviving_steps
from schemas.trajectories import encode
from schemas.weights import WeightVersion
from tests.support.kafka import broker, run_config  # noqa: F401 - fixtures
from tests.support.tiny_model import build_tiny_model
from tests.support.trajectories import (
    LearnerProcess,
    Rollouts,
    read_all,
    read_ledger,
    shared_ranks,
    wait_until,
    weight_hash,
    write_prompts,
    write_records,
)

logging.getLogger("kafka").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_config(run_config, tmp_path, model_dir):  # noqa: F811
    def make(**learner):
        return run_config.model_copy(
            update={
                "model": run_config.model.model_copy(update={"path": str(model_dir), "dtype": "float32"}),
                "weights": run_config.weights.model_copy(update={"root": str(tmp_path / "weights"), "keep": 100}),
                "learner": run_config.learner.model_copy(
                    update={
                        "groups_per_step": 3,
                        "steps": 4,
                        "checkpoint_root": str(tmp_path / "checkpoints"),
                        "checkpoint_every": 3,
                        "learning_rate": 1e-3,
                        **learner,
                    }
                ),
            }
        )

    return make


def learn(config, stop=None):
    """A learner in this process."""
    from schemas.config import RunConfig
    from trainers.learn import lead
    from trainers.log import broker_errors

    config = RunConfig.model_validate(config.model_dump())
    with broker_errors(config):
        lead(config, shared_ranks(), stop or threading.Event())


def steps_of(config):
    return [entry for entry in read_ledger(config) if isinstance(entry, StepEntry)]


def assert_consistent(config):
    """What must hold of every run, from the topics alone."""
    entries = read_ledger(config)
    line = surviving_steps(entries)
    assert [entry.step for entry in line] == list(range(1, len(line) + 1))
    ended = Counter(part.group for entry in line for part in (*entry.trained, *entry.dropped)
                    if getattr(part, "reason", None) != "duplicate")  # fmt: skip
    assert set(ended.values()) <= {1}, "a group ended twice in the surviving line"
    announced = [WeightVersion.decode(record.value) for record in read_all(config, config.topics.weights)]
    versions = [record.version for record in announced]
    assert versions == sorted(set(versions)), "a version was used twice or went back"
    steps = {record.version: record.step for record in announced}
    for entry in line:
        for trained in entry.trained:
            assert entry.step - 1 - steps[trained.versions[0]] <= config.learner.max_staleness
    last = {}
    for record in read_all(config, config.topics.admission):
        frontier = AdmissionFrontier.decode(record.value)
        assert all(offset >= last.get(partition, 0) for partition, offset in frontier.frontier.items())
        last = frontier.frontier
    return entries, line


def test_steps_happen_and_ledger_weights_and_admission_agree(make_config, model_dir):
    config = make_config(max_staleness=1)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        learn(config)
    entries, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3, 3, 3, 3]
    assert [record.step for record in map(_weights, read_all(config, config.topics.weights))] == [0, 1, 2, 3, 4]
    frontiers = [AdmissionFrontier.decode(record.value) for record in read_all(config, config.topics.admission)]
    assert [sum(frontier.frontier.values()) for frontier in frontiers] == [6, 9, 12, 15, 18]
    assert [frontier.version for frontier in frontiers] == [1, 2, 3, 4, 5]
    checkpoints = [entry for entry in entries if isinstance(entry, CheckpointEntry)]
    assert [entry.step for entry in checkpoints] == [3, 4]
    assert checkpoints[1].parent_sha256 == checkpoints[0].manifest_sha256
    assert line[0].metrics["logprob_gap_mean"] < 1e-5
    assert line[0].metrics["reward_mean"] == 0.5
    assert len({weight_hash(config, version) for version in (1, 2, 3, 4, 5)}) == 5


def _weights(record):
    return WeightVersion.decode(record.value)


def test_zero_staleness_never_trains_a_stale_sample(make_config, model_dir):
    config = make_config(max_staleness=0, steps=4)
    write_prompts(config, 90)
    with Rollouts(config, model_dir, lag=lambda group: group.offset % 2):
        learn(config)
    _, line = assert_consistent(config)
    assert [entry.metrics["staleness_max"] for entry in line] == [0, 0, 0, 0]
    dropped = Counter(part.reason for entry in line for part in entry.dropped)
    assert dropped["stale"] >= 3
    frontier = AdmissionFrontier.decode(read_all(config, config.topics.admission)[-1].value).frontier
    assert sum(frontier.values()) == 4 * 3 + 3 + dropped["stale"]


def test_unusable_records_become_dead_letters_and_are_replaced(make_config, model_dir):
    config = make_config(steps=3, max_staleness=0)
    write_prompts(config, 60)
    lost = GroupId(0, 1)
    with Rollouts(config, model_dir, send=lambda group: group != lost) as rollouts:
        stop = threading.Event()
        thread = threading.Thread(target=learn, args=(config, stop), daemon=True)
        thread.start()
        samples = wait_until(lambda: rollouts.answered.get(lost))
        good = wait_until(lambda: rollouts.answered.get(GroupId(0, 0)))
        value, headers = encode(samples)
        future = [replace(sample, prompt_offset=10**15) for sample in good]
        write_records(config, [(value[:-9], headers), (b"junk", {}), encode(good), encode(future)])
        thread.join(90)
        assert not thread.is_alive()
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3, 3, 3]
    letters = [DeadLetter.decode(record.value) for record in read_all(config, config.topics.dead_letters)]
    assert {letter.stage for letter in letters} == {"learn"}
    by_topic = Counter((letter.topic.split(".")[-1], letter.reason) for letter in letters)
    assert by_topic[("prompts", "bad_sha256")] == 1
    assert by_topic[("trajectories", "bad_headers")] == 1
    assert by_topic[("trajectories", "not_admitted")] == 1
    assert next(letter for letter in letters if letter.topic == config.topics.prompts).group == lost
    assert "trajectories[" in letters[0].detail
    assert Counter(part.reason for entry in line for part in entry.dropped)["duplicate"] <= 1
    frontier = AdmissionFrontier.decode(read_all(config, config.topics.admission)[-1].value).frontier
    assert sum(frontier.values()) == 3 * 3 + 3 + 1


def test_corrupt_checkpoint_falls_back_to_the_older_one_and_redoes_the_rest(make_config, model_dir, tmp_path):
    config = make_config(steps=4, checkpoint_every=2)
    write_prompts(config, 90)
    with Rollouts(config, model_dir):
        learn(config)
        newest = sorted((tmp_path / "checkpoints").glob("g0001-s00000004-*"))[0]
        shard = max(newest.rglob("*.pt"), key=lambda path: path.stat().st_size)
        shard.write_bytes(shard.read_bytes()[:-1] + b"X")
        learn(make_config(steps=5, checkpoint_every=2))
    entries, line = assert_consistent(config)
    assert [entry.continues.step for entry in entries if isinstance(entry, StartEntry) and entry.continues] == [2]
    assert [entry.generation for entry in line] == [1, 1, 2, 2, 2]
    dead = [entry for entry in steps_of(config) if entry.generation == 1][2:]
    assert [entry.trained for entry in line[2:4]] == [entry.trained for entry in dead]
    for path in (tmp_path / "checkpoints").rglob("*.pt"):
        path.write_bytes(b"X")
    with pytest.raises(StateError, match="no usable checkpoint"):
        learn(make_config(steps=6))


def test_checkpoint_without_ledger_entry_counts_and_is_recorded(make_config, model_dir, monkeypatch):
    from trainers.commit import Committer

    config = make_config(steps=2, checkpoint_every=2)
    write_prompts(config, 60)
    commit = Committer.commit

    def die_at_checkpoint(self, records):
        if isinstance(records[0], CheckpointEntry):
            raise KeyboardInterrupt
        commit(self, records)

    with Rollouts(config, model_dir):
        monkeypatch.setattr(Committer, "commit", die_at_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            learn(config)
        monkeypatch.undo()
        assert not [entry for entry in read_ledger(config) if isinstance(entry, CheckpointEntry)]
        learn(make_config(steps=3, checkpoint_every=10))
    entries, line = assert_consistent(config)
    assert [entry.generation for entry in line] == [1, 1, 2]
    assert [entry.step for entry in entries if isinstance(entry, CheckpointEntry)] == [2, 3]


def test_checkpoint_of_another_configuration_is_refused_naming_both(make_config, model_dir):
    config = make_config(steps=1)
    write_prompts(config, 30)
    with Rollouts(config, model_dir):
        learn(config)
    with pytest.raises(ConfigError, match="zero_stage is 0 in the checkpoint and 1 now"):
        learn(make_config(steps=2, zero_stage=1))


def test_newer_learner_fences_the_older_one(make_config):
    from trainers.commit import Committer

    config = make_config()
    older = Committer(config)
    newer = Committer(config)
    with pytest.raises(FencedError):
        older.commit([StartEntry(generation=1)])
    newer.commit([StartEntry(generation=2)])
    assert [entry.generation for entry in read_ledger(config)] == [2]
    newer.close()
    older.close()


def test_missing_topic_and_missing_broker_are_named(make_config):
    config = make_config()
    with pytest.raises(BrokerError, match=r"nothing\.prompts"):
        learn(config.model_copy(update={"name": "nothing"}))
    nowhere = config.kafka.model_copy(update={"bootstrap": "127.0.0.1:9", "client": {"bootstrap_timeout_ms": 1000}})
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:9"):
        learn(config.model_copy(update={"kafka": nowhere}))


def test_killed_learner_redoes_its_steps_to_the_same_bits_and_no_group_twice(make_config, model_dir, tmp_path):
    config = make_config(steps=9, checkpoint_every=4)
    write_prompts(config, 27)  # of these 21 have variance: seven steps, then the learner waits for more
    with Rollouts(config, model_dir, reward=lambda group, index: float(index % 2) if group.offset % 5 else 0.0):
        with LearnerProcess(config, tmp_path) as learner:
            wait_until(lambda: len(steps_of(config)) == 7)
            os.kill(learner.process.pid, signal.SIGKILL)
            learner.wait()
        first = steps_of(config)
        write_prompts(config, 60, seed=1)
        with LearnerProcess(config, tmp_path) as learner:
            assert learner.wait() == 0, learner.tail()
    entries, line = assert_consistent(config)
    starts = [entry for entry in entries if isinstance(entry, StartEntry)]
    assert [entry.generation for entry in starts] == [1, 2]
    assert starts[1].continues == Position(generation=1, step=4)
    assert [entry.generation for entry in line] == [1] * 4 + [2] * 5
    for entry, dead in zip(line[4:7], first[4:], strict=True):
        assert entry.trained == dead.trained
        assert entry.dropped == dead.dropped
        assert entry.version > dead.version
        assert weight_hash(config, entry.version) == weight_hash(config, dead.version)
    assert any(part.reason == "zero_variance" for entry in line for part in entry.dropped)


def test_learner_killed_at_any_moment_leaves_a_log_that_a_successor_can_finish(make_config, model_dir, tmp_path):
    config = make_config(steps=30, checkpoint_every=3)
    write_prompts(config, 200)
    with Rollouts(config, model_dir):
        with LearnerProcess(config, tmp_path) as learner:
            wait_until(lambda: len(steps_of(config)) >= 5, every_s=0.05)
            os.kill(learner.process.pid, signal.SIGKILL)
            learner.wait()
        learn(config)
    entries, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3] * 30
    assert line[-1].generation == max(entry.generation for entry in entries)


def test_sigterm_ends_with_a_checkpoint_and_exit_code_0(make_config, model_dir, tmp_path):
    config = make_config(steps=1000, checkpoint_every=1000)
    write_prompts(config, 300)
    with Rollouts(config, model_dir), LearnerProcess(config, tmp_path) as learner:
        wait_until(lambda: len(steps_of(config)) >= 2)
        learner.process.send_signal(signal.SIGTERM)
        learner.process.send_signal(signal.SIGINT)
        assert learner.wait() == 0, learner.tail()
    entries, line = assert_consistent(config)
    assert isinstance(entries[-1], CheckpointEntry)
    assert entries[-1].step == line[-1].step


def test_two_ranks_train_the_same_run(make_config, model_dir, tmp_path):
    config = make_config(steps=2, zero_stage=2)
    write_prompts(config, 60)
    with Rollouts(config, model_dir), LearnerProcess(config, tmp_path, ranks=2) as learner:
        assert learner.wait() == 0, learner.tail()
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3, 3]
    assert line[0].metrics["logprob_gap_mean"] < 1e-5
