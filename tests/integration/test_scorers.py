"""A reward model and a critic beside a run, on a real broker: what they learn, leave alone and leave behind."""

import json
import random
import statistics
import threading
from dataclasses import replace

import pytest
import torch
from kafka import KafkaConsumer, TopicPartition

from pipelines.reward_model.classifier import Classifier
from schemas.errors import ConfigError, RunError, StateError
from schemas.identity import GroupId
from schemas.manifests import MANIFEST_NAME
from schemas.scoring import ScorerServerConfig
from schemas.topics import Topics
from schemas.trajectories import encode
from tests.support.samples import group
from tests.support.trajectories import shared_ranks, write_records
from trainers.backlog import is_held_out
from trainers.learn_scorer import lead
from trainers.log import broker_errors
from trainers.stream import Stream

GROUPS = 60


def write_groups(config, numbers):
    """Answers whose reward their last token tells: the upper half of the words is right."""
    draw, records = random.Random(numbers.start), []
    for number in numbers:
        samples = []
        for sample in group(0, number, size=4, run=config.name):
            answer = tuple(draw.choices(range(6, 80), k=draw.randint(3, 5)))
            samples.append(
                replace(
                    sample, response_token_ids=answer, response_logprobs=(-4.0,) * len(answer), prompt_token_ids=(7, 8),
                    loss_mask=(True,) * len(answer), reward=float(answer[-1] >= 43),
                )
            )  # fmt: skip
        records.append(encode(samples))
    write_records(config, records)


@pytest.fixture
def make_scorer(make_config, tmp_path):
    """From changes of the scorer's section to the configuration of the test's run."""

    def make(**scorer):
        config = make_config(checkpoint_every=4)
        own = {"root": str(tmp_path / "scorer"), "groups_per_step": 8, "learning_rate": 3e-3, "held_out": 0.3,
               "report_every": 100, **scorer}  # fmt: skip
        return config.model_copy(update={"scorer": config.scorer.model_validate(own)})

    return make


def learn(config):
    with broker_errors(config):
        lead(config, shared_ranks(), threading.Event())


def reports(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def ends(config):
    """The end of every topic of the run."""
    consumer = KafkaConsumer(**config.kafka.consumer_options())
    names = [name for name in consumer.topics() if name.startswith(config.name)]
    assert len(names) >= len(Topics.__dataclass_fields__)
    found = consumer.end_offsets([TopicPartition(n, p) for n in names for p in consumer.partitions_for_topic(n)])
    consumer.close()
    return found


def load(directory):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoTokenizer.from_pretrained(directory)
    return AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)


def score(model, token_ids):
    with torch.no_grad():
        return float(model(torch.tensor([token_ids])).logits[0, 0])


@pytest.fixture
def starts(monkeypatch):
    """From where each scorer reads the trajectories."""
    found = []

    class Recorded(Stream):
        def __init__(self, config, positions, letters_from):
            found.append(positions)
            super().__init__(config, positions, letters_from)

    monkeypatch.setattr("trainers.learn_scorer.Stream", Recorded)
    return found


def test_reward_model_learns_goes_on_where_it_was_and_changes_nothing_of_the_run(make_scorer, starts, capsys, tmp_path):
    config = make_scorer(steps=3)
    write_groups(config, range(GROUPS))
    before = ends(config)
    learn(config)
    (first,) = reports(capsys)
    held_out = [number for number in range(GROUPS) if is_held_out(config.name, GroupId(0, number), 0.3)]
    write_groups(config, range(GROUPS, 4 * GROUPS))
    learn(make_scorer(until_end_of_log=True))
    (second,) = reports(capsys)
    assert second["pairwise_accuracy"] > max(0.8, first["pairwise_accuracy"])
    assert second["held_out_groups"] > len(held_out) > 5
    assert starts[0] is None
    assert 3 * 8 <= starts[1][0] <= GROUPS, "where the oldest one waits that was not trained"
    newest = max((tmp_path / "scorer").glob("g*"), key=lambda path: path.name)
    state = json.loads((newest / "state.json").read_bytes())
    assert state["accounts"]["count"] == 4 * GROUPS, "every group once, whatever became of it"
    after = ends(config)
    assert {name.topic for name in after if after[name] != before[name]} == {config.topics.trajectories}

    model = load(tmp_path / "scorer" / "model")
    assert score(model, [7, 8, 9, 70]) > score(model, [7, 8, 9, 10])
    probe = json.loads((tmp_path / "scorer" / "model" / MANIFEST_NAME).read_bytes())["facts"]["probe"]
    assert score(model, probe["token_ids"]) == pytest.approx(probe["scores"][-1], abs=1e-5)
    padded = torch.tensor([[7, 8, 9, 70], [7, 8, 9, model.config.pad_token_id]])
    with torch.no_grad():
        assert float(model(padded).logits[1, 0]) == pytest.approx(score(model, [7, 8, 9]), abs=1e-5)
    served = Classifier(ScorerServerConfig(model=str(tmp_path / "scorer" / "model"), device="cpu"))
    rows = [[7, 8, 9, 70], [7, 8, 9], [30]]
    assert served.score(rows) == pytest.approx([score(model, row) for row in rows], abs=1e-5)


def test_critic_expects_the_reward_and_refuses_what_does_not_fit(make_scorer, capsys, tmp_path):
    config = make_scorer(kind="critic", until_end_of_log=True, gamma=0.9, report_every=1)
    write_groups(config, range(2 * GROUPS))
    learn(config)
    *_, last = lines = reports(capsys)
    assert [line["step"] for line in lines] == [*range(1, last["step"] + 1), last["step"]]
    assert last["value_explained_variance"] is not None
    critic = load(tmp_path / "scorer" / "model")
    expected = statistics.fmean(score(critic, [7, 8, 9, word]) for word in range(6, 80))
    assert expected == pytest.approx(0.5, abs=0.3), "half of the answers are right; an untrained head says 0"
    with pytest.raises(ConfigError, match=r"scorer\.kind is 'critic' in the checkpoint and 'reward' now"):
        learn(make_scorer(kind="reward"))
    with (tmp_path / "scorer" / "lock").open("a") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another process"):
            learn(config)
    for path in (tmp_path / "scorer").rglob("g*/state/*.safetensors"):
        path.write_bytes(b"X")
    with pytest.raises(StateError, match="no usable checkpoint"):
        learn(config)
