"""``asyncflow plan --run`` on the log of a run that lies on a real broker."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from kafka import KafkaProducer

from schemas.admission import AdmissionFrontier
from schemas.ledger import Settings, StartEntry, StepEntry, TrainedGroup
from schemas.trajectories import encode
from tests.support.cli import caller, refused
from tests.support.samples import group

BEGUN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
GROUPS = 40
TOKENS = 10
"""One group after the other, of two answers of as many tokens each, in a second."""


def write_log(config):
    """A run of one engine that answered a group in a second, and of a learner that took one every second."""
    producer = KafkaProducer(**config.kafka.producer_options())
    topics, begun_ms = config.topics, int(BEGUN.timestamp() * 1000)
    frontier = AdmissionFrontier(version=1, generation=1, frontier={0: GROUPS})
    producer.send(topics.admission, frontier.encode(), timestamp_ms=begun_ms)
    settings = Settings(max_staleness=2, groups_per_step=1)
    producer.send(topics.ledger, StartEntry(generation=1, settings=settings).encode())
    for number in range(GROUPS):
        at = BEGUN + timedelta(seconds=number + 1)
        value, headers = encode([longer(sample, at) for sample in group(0, number)])
        stamp = int(at.timestamp() * 1000) + 500
        producer.send(topics.trajectories, value, None, list(headers.items()), 0, stamp)
        producer.send(topics.ledger, step(number + 1, at).encode())
    producer.flush()
    producer.close()


def longer(sample, at):
    changes = {"response_token_ids": (7,) * TOKENS, "response_logprobs": (-1.0,) * TOKENS,
               "loss_mask": (True,) * TOKENS, "prompt_at": BEGUN, "generated_at": at}  # fmt: skip
    return replace(sample, **changes)


def step(number, at):
    trained = TrainedGroup(group=(0, number - 1), at=(0, number - 1), attempt="a1", samples=2, versions=(11, 12))
    metrics = {"tokens": 26.0, "seconds_train": 0.13}
    return StepEntry(generation=1, step=number, version=number, trained=(trained,), dropped=(), metrics=metrics, at=at)


def test_a_run_is_read_planned_and_saved(run_config, capsys, tmp_path):
    write_log(run_config)
    asyncflow = caller(capsys)
    run = ("--run", run_config.name, "--bootstrap", run_config.kafka.bootstrap)
    done = asyncflow("plan", *run, "--max-in-flight", 1, "--workers", 1, "--steps", 6, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = told["calibration"]
    assert found["workload"]["groups_per_step"] == 1
    assert found["learner"]["token_s"] == pytest.approx(0.13 / 26)
    assert found["log"]["latency_s"] == pytest.approx(0.5)
    assert told["measured"]["samples_per_s"] == pytest.approx(2)
    saved = asyncflow("plan", *run, "--save", "plan.toml", cwd=tmp_path)
    assert "trajectories: 80 answers" in saved.stdout
    assert "measured in 37 steps of the run: 1 s a step, 2 samples/s" in saved.stdout
    again = asyncflow("plan", "--calibration", "plan.toml", "--workers", 1, cwd=tmp_path)
    assert "predicted, not measured" in again.stdout


def test_a_run_without_answers_is_told(run_config, capsys, tmp_path):
    run = ("--run", run_config.name, "--bootstrap", run_config.kafka.bootstrap)
    assert refused(caller(capsys)("plan", *run, cwd=tmp_path), "has no answers yet", "--calibration FILE")
