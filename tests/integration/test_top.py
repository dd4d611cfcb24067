"""``asyncflow top`` on a real broker: what the topics say, and what a run that goes on changes."""

import json
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from pipelines.cli.main import main
from pipelines.local.topics import create_topics
from pipelines.top.explain import explain
from pipelines.top.topics import TopicsWatcher
from pipelines.top.watch import Watch, Watched
from schemas.admission import AdmissionFrontier
from schemas.config import KafkaConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.ledger import DroppedGroup, Position, Settings, StartEntry, StepEntry, TrainedGroup
from schemas.offsets import OffsetSet
from schemas.records import now
from schemas.trajectories import Span, encode
from schemas.weights import WeightVersion
from schemas.workers import WorkerEntry
from tests.support.samples import group
from tests.support.trajectories import write_prompts


@pytest.fixture(scope="module")
def run_config(broker):
    """A run that all tests look at."""
    config = RunConfig(name="test-top", kafka=KafkaConfig(bootstrap=broker))
    create_topics(config)
    return config


@pytest.fixture(scope="module")
def send(run_config):
    """Writes records to a topic of the run, whole before it returns."""
    producer = KafkaProducer(**run_config.kafka.producer_options())

    def write(topic, *values, headers=()):
        for value in values:
            producer.send(topic, value if isinstance(value, bytes) else value.encode(), None, list(headers), 0)
        producer.flush()

    yield write
    producer.close()


def weights(version):
    return WeightVersion(version=version, step=version - 1, generation=1, manifest_sha256="a" * 64, dtype="float32",
                         base_model="m")  # fmt: skip


def step(number, offset, generation=1):
    trained = TrainedGroup(group=(0, offset), at=(0, offset), attempt="a", samples=2, versions=(1, 1))
    return StepEntry(generation=generation, step=number, version=number + 1, trained=(trained,), dropped=(),
                     metrics={"reward_mean": 0.5, "kl": 0.25})  # fmt: skip


def announcement(state):
    """Of a worker whose clock is ahead: however slow this machine is, it was heard of just now."""
    at = now() + timedelta(hours=1)
    return WorkerEntry(url="http://127.0.0.1:1", state=state, version=2, max_num_seqs=64, at=at)


@pytest.fixture(scope="module")
def run(run_config, send):
    """Ten prompts, of which six are admitted, four answered (one a dead letter), one trained, one dropped."""
    topics = run_config.topics
    write_prompts(run_config, 10)
    send(topics.admission, AdmissionFrontier(version=1, generation=1, frontier={0: 3, 1: 3}))
    drop = DroppedGroup(group=(0, 1), at=(0, 1), reason="zero_variance")
    first = step(1, 0)
    send(topics.ledger, StartEntry(generation=1, settings=Settings(max_staleness=1, groups_per_step=2)),
         first.model_copy(update={"dropped": (drop,)}))  # fmt: skip
    send(topics.weights, weights(1), weights(2))
    for offset in range(3):
        span = {"weight_version_spans": (Span(1, 0),), "weight_version_min": 1, "weight_version_max": 1}
        value, headers = encode([replace(each, **span) for each in group(0, offset, 2)])
        send(topics.trajectories, value, headers=headers.items())
    send(topics.dead_letters, DeadLetter.of("score", "reward_timeout", "x", (topics.prompts, 1, 0), b"x"))
    send(topics.workers, announcement("up"))
    finished = OffsetSet(0, {0, 1, 2})
    consumer = KafkaConsumer(group_id=topics.rollout_group, **run_config.kafka.consumer_options())
    consumer.commit({TopicPartition(topics.prompts, 0): OffsetAndMetadata(3, "", -1),
                     TopicPartition(topics.prompts, 1): OffsetAndMetadata(0, finished.encode(), -1)})  # fmt: skip
    consumer.close()
    return run_config


def test_a_screen_has_what_the_topics_say_and_follows_them(run, send, monkeypatch):
    with Watch(Watched(run, {}, is_here=False)) as watch:
        seen = watch.snapshot()
        rows = {stage.name: (stage.total, stage.waiting) for stage in seen.stages}
        assert rows == {"prompts": (10, 4), "in flight": (6, 0), "trajectories": (3, 1), "trained": (1, None),
                        "dropped": (1, None), "dead letters": (1, None)}  # fmt: skip
        assert seen.stage("trajectories").lag_records == 1
        assert (seen.learner.step, seen.learner.version, seen.learner.have, seen.learner.need) == (1, 2, 1, 2)
        assert (seen.learner.metrics["kl"], seen.learner.staleness, seen.learner.steps) == (0.25, {0: 1}, None)
        assert [(worker.url, worker.state, worker.version) for worker in seen.workers] == [
            ("http://127.0.0.1:1", "up", 2)
        ]
        assert seen.dead_letters == {"reward_timeout": 1}
        assert [sample.group for sample in seen.samples] == ["0/0", "0/1", "0/2"]
        assert explain(watch.history)[0].text.startswith("learner waits for 1 group since")

        send(run.topics.ledger, StartEntry(generation=2, continues=Position(generation=1, step=0)), step(1, 0, 2))
        send(run.topics.workers, announcement("leaving"))
        assert watch.look().stage("trajectories").total == 3, "one trained again, one that waits again, one that waits"
        texts = [sentence.text for sentence in (watch.look(), explain(watch.history))[1]]
        assert any("learner died and was started again" in text for text in texts)
        assert any("worker http://127.0.0.1:1 left" in text for text in texts)
        watching = {each.name: each for each in threading.enumerate() if each.name.startswith("top-")}
        with monkeypatch.context() as patch:
            patch.setattr(TopicsWatcher, "look", lambda _: {}["what nobody thought of"])
            watching["top-topics"].join(60)
            with pytest.raises(KeyError, match="nobody thought of"):
                watch.snapshot()
    for thread in watching.values():
        thread.join(60)
    assert len(watching) == 2
    assert not any(thread.is_alive() for thread in watching.values())
    with pytest.raises(RuntimeError, match="closed"):
        watch.look()


def test_a_program_reads_one_look_as_json(run, capsys):
    assert main(["top", run.name, "--bootstrap", run.kafka.bootstrap, "--once", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["learner"]["step"], found["dead_letters"]) == (run.name, 1, {"reward_timeout": 1})
    assert found["sentences"][0]["level"] in ("fault", "wait")


def test_a_run_that_is_not_there_is_named(broker, capsys):
    assert main(["top", "nobody", "--bootstrap", broker, "--once"]) == 2
    assert "topic nobody.ledger does not exist" in capsys.readouterr().err
