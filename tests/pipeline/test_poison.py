"""A prompt that kills its engine, against a real broker and an engine that is a process and really ends."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.config import ModelConfig, RolloutConfig
from schemas.dead_letters import DeadLetter
from schemas.trajectories import Group
from tests.pipeline.rollout_process import Topics, wait_for
from transforms.generation.pool import Pool
from transforms.generation.tokenizer import Tokenizer
from transforms.rewards import registry
from transforms.score import scorer_of

registry.load()
POISON, NEIGHBOUR = 8, 7
"""First tokens of prompts."""


class RestartedEngine:
    """The simulated engine as a process that is started again whenever it ends."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.starts = 0
        self._stopped = threading.Event()
        self._start()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def _start(self):
        self.starts += 1
        command = [sys.executable, "-m", "tests.support.simulated_engine", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--set", "mean_s=0.5", "--exit-on", str(POISON)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": "."},
        )

    def _supervise(self):
        while not self._stopped.wait(0.05):
            if self._process.poll() is not None:
                self._start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()
        self._process.kill()
        self._process.wait()


@pytest.fixture
def engine():
    with RestartedEngine() as engine:
        yield engine


def prompt(first):
    return json.dumps({"token_ids": [first, 6], "reward": {"name": "last_number", "args": {"answer": "5"}}}).encode()


def test_a_poison_prompt_costs_two_engine_starts_and_nobody_else(run_config, model, engine):
    rollout = RolloutConfig(workers=(engine.url,), group_size=2, max_in_flight=8, attempts=1)
    config = run_config.model_copy(update={"model": ModelConfig(path=model), "rollout": rollout})
    topics = Topics(config)
    sent = topics.send_prompts([prompt(POISON if index == 5 else NEIGHBOUR) for index in range(24)])
    topics.admit(100, 100)
    pool = Pool(config, 0, Tokenizer.load(model), scorer_of(config.rewards))
    try:
        outcomes = {}
        wait_for(lambda: outcomes.update(_taken(pool)) or len(outcomes) == len(sent))
    finally:
        pool.stop()
    letters = [outcome for outcome in outcomes.values() if isinstance(outcome, DeadLetter)]
    assert [(tuple(letter.group), letter.reason) for letter in letters] == [(sent[5], "engine_killed")]
    assert {tuple(outcome.id) for outcome in outcomes.values() if isinstance(outcome, Group)} == {*sent} - {sent[5]}
    assert engine.starts <= 1 + 2


def _taken(pool):
    outcomes = [finished.outcome for finished in pool.take(100)]
    return {tuple(outcome.id if isinstance(outcome, Group) else outcome.group): outcome for outcome in outcomes}
