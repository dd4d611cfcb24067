"""The learner on a real broker: the instrument of tests/support/trajectories.py plays everything else."""

import json
import logging
import math
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.admission import AdmissionFrontier
from schemas.crash_points import VARIABLE, arm, hits
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, ConfigError, DiskError, DivergedError, FencedError, StateError
from schemas.identity import GroupId
from schemas.ledger import CheckpointEntry, Position, StartEntry, StepEntry
from schemas.trajectories import encode
from schemas.weights import WeightVersion, version_path
from tests.support.trajectories import (
    LearnerProcess,
    Rollouts,
    assert_consistent,
    learn,
    read_all,
    read_ledger,
    steps_of,
    wait_until,
    weight_hash,
    write_prompts,
    write_records,
)
from trainers.accounts import Accounts
from trainers.admission import Admission
from trainers.commit import Committer
from trainers.engine import Engine
from trainers.log import open_consumer, partitions_of
from trainers.metrics import FIGURES
from trainers.publish import WeightStore

logging.getLogger("kafka").setLevel(logging.ERROR)


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
    assert {name for entry in line for name in entry.metrics} <= FIGURES.keys(), "docs/metrics.md has all of them"
    written = (Path(config.learner.checkpoint_root).parent / "metrics.jsonl").read_text().splitlines()
    assert [(row["step"], row["loss"]) for row in map(json.loads, written)] == [
        (entry.step, entry.metrics["loss"]) for entry in line
    ]


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


class Order:
    """What a learner does in which order; weights are written only once the next gradient is on its way."""

    def __init__(self, monkeypatch, steps):
        self.events, self._steps, self._next = [], steps, threading.Condition()
        for owner, name, note in (
            (Engine, "_accumulate", lambda *_: ("gradient", self.count("update") + 1)),
            (Engine, "_update", lambda *_: ("update", self.count("update") + 1)),
        ):
            monkeypatch.setattr(owner, name, self._noting(getattr(owner, name), note))
        monkeypatch.setattr(WeightStore, "write", self._late(WeightStore.write))
        monkeypatch.setattr(Committer, "commit", self._noting_after(Committer.commit))

    def count(self, kind):
        return len({number for name, number in self.events if name == kind})

    def _noting(self, function, note):
        def noting(*arguments):
            with self._next:
                self.events.append(note(*arguments))
                self._next.notify_all()
            return function(*arguments)

        return noting

    def _noting_after(self, function):
        def noting(committer, records, *trace):
            function(committer, records, *trace)
            self.events += [("commit", record.step) for record in records if isinstance(record, StepEntry)]

        return noting

    def _late(self, write):
        def late(store, tensors, facts, *others, **options):
            if 0 < facts.step < self._steps:
                with self._next:
                    assert self._next.wait_for(lambda: ("gradient", facts.step + 1) in self.events, 60)
            return write(store, tensors, facts, *others, **options)

        return late


def test_a_step_is_published_while_the_next_gradient_is_computed_and_before_its_update(
    make_config, model_dir, monkeypatch
):
    config = make_config(steps=4, max_staleness=2, checkpoint_every=100)
    write_prompts(config, 90)
    order = Order(monkeypatch, steps=4)
    with Rollouts(config, model_dir):
        learn(config)
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3, 3, 3, 3]
    for step in (1, 2, 3):
        place = order.events.index(("commit", step))
        assert order.events.index(("gradient", step + 1)) < place < order.events.index(("update", step + 1))
    assert order.events[-1] == ("commit", 4)


def test_what_goes_wrong_beside_a_gradient_ends_the_learner_before_the_next_update(make_config, model_dir, monkeypatch):
    config = make_config(steps=4, max_staleness=2)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        with monkeypatch.context() as patched:
            order, write = Order(patched, steps=4), WeightStore.write

            def full(store, tensors, facts, *others, **options):
                if facts.step == 2:
                    raise DiskError("no room")
                return write(store, tensors, facts, *others, **options)

            patched.setattr(WeightStore, "write", full)
            with pytest.raises(DiskError, match="no room"):
                learn(config)
        assert [entry.step for entry in steps_of(config)] == [1]
        assert order.count("update") == 2
        learn(config)
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3, 3, 3, 3]


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
        shard = max(newest.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        shard.write_bytes(shard.read_bytes()[:-1] + b"X")
        learn(make_config(steps=5, checkpoint_every=2))
    entries, line = assert_consistent(config)
    assert [entry.continues.step for entry in entries if isinstance(entry, StartEntry) and entry.continues] == [2]
    assert [entry.generation for entry in line] == [1, 1, 2, 2, 2]
    dead = [entry for entry in steps_of(config) if entry.generation == 1][2:]
    assert [entry.trained for entry in line[2:4]] == [entry.trained for entry in dead]
    for path in (tmp_path / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(b"X")
    with pytest.raises(StateError, match="no usable checkpoint"):
        learn(make_config(steps=6))


def test_checkpoint_without_ledger_entry_counts_and_is_recorded(make_config, model_dir, monkeypatch):
    config = make_config(steps=2, checkpoint_every=2)
    write_prompts(config, 60)
    commit = Committer.commit

    def die_at_checkpoint(self, records, *trace):
        if isinstance(records[0], CheckpointEntry):
            raise KeyboardInterrupt
        commit(self, records, *trace)

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


def test_a_checkpoint_serves_another_stage_and_not_another_number_format(make_config, model_dir):
    config = make_config(steps=1)
    write_prompts(config, 30)
    with Rollouts(config, model_dir):
        learn(config)
        learn(make_config(steps=2, zero_stage=2))
    changed = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    with pytest.raises(ConfigError, match="dtype is 'float32' in the checkpoint and 'bfloat16' now"):
        learn(changed)


def test_full_queues_lose_no_partition(run_config):
    write_prompts(run_config, 2600)
    consumer = open_consumer(run_config)
    partitions = partitions_of(consumer, run_config.topics.prompts)
    accounts = Accounts()
    with closing(Admission(consumer, partitions, accounts.skip)) as admission:
        admission.recount({}, 0, {})
        deadline = time.monotonic() + 60
        while admission.admitted < 2600 and time.monotonic() < deadline:
            before = dict(admission.frontier)
            admission.advance(admission.admitted + 100, 0.1)
            assert max(admission.frontier[p] - before[p] for p in before) <= 100
        assert admission.frontier == {0: 1300, 1: 1300}


def test_newer_learner_fences_the_older_one(make_config):
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


def test_killed_learner_redoes_its_steps_to_the_same_bits_and_no_group_twice(make_config, model_dir, nursery, tmp_path):
    config = make_config(steps=9, checkpoint_every=4)
    write_prompts(config, 27)  # of these 21 have variance: seven steps, then the learner waits for more
    with Rollouts(config, model_dir, reward=lambda group, index: float(index % 2) if group.offset % 5 else 0.0):
        nursery.start(config, tmp_path)
        wait_until(lambda: len(steps_of(config)) == 7)
        nursery.kill(signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL
        first = steps_of(config)
        write_prompts(config, 60, seed=1)
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
    entries, line = assert_consistent(config)
    starts = [entry for entry in entries if isinstance(entry, StartEntry)]
    assert [entry.generation for entry in starts] == [1, 2]
    assert starts[1].continues == Position(generation=1, step=4)
    assert starts[1].numerics.threads == 1
    assert [entry.generation for entry in line] == [1] * 4 + [2] * 5
    for entry, dead in zip(line[4:7], first[4:], strict=True):
        assert entry.trained == dead.trained
        assert entry.dropped == dead.dropped
        assert entry.version > dead.version
        assert weight_hash(config, entry.version) == weight_hash(config, dead.version)
    assert any(part.reason == "zero_variance" for entry in line for part in entry.dropped)


def test_signals_end_with_a_checkpoint_and_exit_code_0_however_many(make_config, model_dir, nursery, tmp_path):
    config = make_config(steps=1000, checkpoint_every=1000)
    write_prompts(config, 300)
    with Rollouts(config, model_dir):
        nursery.start(config, tmp_path)
        wait_until(lambda: len(steps_of(config)) >= 2)
        storm(nursery)
        assert nursery.wait() == 0, nursery.said()
    entries, line = assert_consistent(config)
    assert isinstance(entries[-1], CheckpointEntry)
    assert entries[-1].step == line[-1].step
    assert "Traceback" not in nursery.said()


def test_signals_from_the_first_moment_on_leave_what_the_next_learner_can_use(
    make_config, model_dir, nursery, tmp_path
):
    config = make_config(steps=6, checkpoint_every=4)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        nursery.start(config, tmp_path)
        wait_until(lambda: len(steps_of(config)) >= 1, every_s=0.05)
        nursery.kill(signal.SIGKILL)  # so that there is something to redo
        nursery.wait()
        nursery.start(config, tmp_path)
        storm(nursery)
        assert nursery.wait() in (0, 130, -signal.SIGTERM), nursery.said()
        nursery.start(config, tmp_path)
        wait_until(lambda: "started" in nursery.said() or nursery.has_ended(), every_s=0.01)
        storm(nursery)
        assert nursery.wait() == 0, nursery.said()
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3] * 6


def storm(nursery):
    """SIGTERM and SIGINT in turn until the learner has ended."""
    while not nursery.has_ended(0.02):
        nursery.kill(signal.SIGTERM)
        nursery.kill(signal.SIGINT)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place):
    """Takes all that is free; returns the file that does."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_disk_full_under_the_checkpoints_is_told_and_the_next_start_goes_on(
    make_config, model_dir, nursery, tmp_path, small_disk
):
    root = small_disk / "checkpoints"
    config = make_config(steps=4, checkpoint_every=2, checkpoint_root=str(root))
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
        whole = sorted(root.iterdir())
        ballast = fill(small_disk)
        config = make_config(steps=8, checkpoint_every=2, checkpoint_root=str(root))
        assert nursery.learn(config, tmp_path) == 2, nursery.said()
        assert "asyncflow learn: checkpoint cannot be written to" in nursery.said()
        assert "Traceback" not in nursery.said()
        assert sorted(root.iterdir()) == whole
        assert len(steps_of(config)) == 6, "the log has carried the steps"
        ballast.unlink()
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
    entries, line = assert_consistent(config)
    assert [entry.generation for entry in line] == [1] * 4 + [3] * 4
    assert [entry.step for entry in entries if isinstance(entry, CheckpointEntry)] == [2, 4, 6, 8]


def test_disk_full_under_the_weights_is_told_and_the_next_start_goes_on(
    make_config, model_dir, nursery, tmp_path, small_disk
):
    config = make_config(steps=4, checkpoint_every=2)
    weights = config.weights.model_copy(update={"root": str(small_disk / "weights"), "keep": 2})
    config = config.model_copy(update={"weights": weights})
    write_prompts(config, 60)
    arm(tmp_path, "before_forward", "stop")
    with Rollouts(config, model_dir):
        nursery.start(config, tmp_path, **{VARIABLE: str(tmp_path)})
        wait_until(lambda: hits(tmp_path, "before_forward"), every_s=0.05)
        ballast = fill(small_disk)
        nursery.wake()
        assert nursery.wait() == 2, nursery.said()
        assert "asyncflow learn: weight version 2 cannot be written to" in nursery.said()
        assert [path.name for path in (small_disk / "weights").iterdir()] == ["00000001"]
        assert steps_of(config) == []
        assert nursery.learn(config, tmp_path) == 2, "still no room"
        ballast.unlink()
        assert nursery.learn(config, tmp_path) == 0, nursery.said()
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3] * 4


class Torn(Rollouts):
    """Flips a bit of version 2 once it is announced, and then refuses it as a worker does."""

    torn = False

    def _answer(self, producer, name, prompt, announced):
        if announced.version != 2:
            super()._answer(producer, name, prompt, announced)
            return
        file = Path(version_path(self.config.weights.root, 2)) / "model.safetensors"
        if not self.torn:
            value = file.read_bytes()
            file.write_bytes(value[:-1] + bytes([value[-1] ^ 1]))
        self.torn = True


def test_weights_that_change_on_the_disk_are_published_again(make_config, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.learn._PATIENCE_S", 0.5)
    config = make_config(steps=3, max_staleness=0)
    write_prompts(config, 60)
    stop = threading.Event()
    threading.Timer(60, stop.set).start()  # where the learner waits for ever
    with Torn(config, model_dir):
        learn(config, stop)
    _, line = assert_consistent(config)
    assert [entry.version for entry in line] == [2, 4, 5]
    announced = [_weights(record) for record in read_all(config, config.topics.weights)]
    assert [(record.version, record.step) for record in announced] == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3)]
    assert weight_hash(config, 2) == weight_hash(config, 3)
    frontiers = [AdmissionFrontier.decode(record.value) for record in read_all(config, config.topics.admission)]
    assert [frontier.version for frontier in frontiers] == [1, 2, 3, 4, 5]


def diverge_after(monkeypatch, steps):
    """Gradients stop being finite after so many steps of this process."""
    train, done = Engine.train, []

    def train_for_a_while(self, *arguments):
        done.append(train(self, *arguments))
        return done[-1] if len(done) <= steps else replace(done[-1], applied=False, grad_norm=math.nan)

    monkeypatch.setattr(Engine, "train", train_for_a_while)


def test_gradients_that_stay_infinite_lead_back_and_what_led_there_is_left_out(make_config, model_dir, monkeypatch):
    config = make_config(steps=6, max_skips=2)
    write_prompts(config, 90)
    with Rollouts(config, model_dir):
        with monkeypatch.context() as patched:
            diverge_after(patched, 4)
            with pytest.raises(DivergedError, match="2 steps in a row"):
                learn(config)
        learn(config)
    entries, line = assert_consistent(config)
    first, second = (entry for entry in entries if isinstance(entry, StartEntry))
    assert first.gives_up == ()
    assert (second.continues.step, second.gives_up) == (3, (4, 5, 6))
    assert Counter(drop.reason for drop in line[3].dropped) == {"quarantined": 3, "nonfinite": 6}
    assert [len(entry.trained) for entry in line] == [3] * 6


def test_model_that_never_had_a_finite_gradient_is_not_tried_for_ever(make_config, model_dir, monkeypatch):
    config = make_config(steps=6, max_skips=2)
    write_prompts(config, 60)
    with Rollouts(config, model_dir):
        diverge_after(monkeypatch, 0)
        with pytest.raises(DivergedError):
            learn(config)
        with pytest.raises(StateError, match="first 2 steps were not finite"):
            learn(config)


def test_two_ranks_train_the_same_run(make_config, model_dir, tmp_path):
    config = make_config(steps=2, zero_stage=3)
    write_prompts(config, 60)
    with Rollouts(config, model_dir), LearnerProcess(config, tmp_path, ranks=2) as learner:
        assert learner.wait() == 0, learner.tail()
    _, line = assert_consistent(config)
    assert [len(entry.trained) for entry in line] == [3, 3]
    assert line[0].metrics["logprob_gap_mean"] < 1e-5
