"""A whole stack that is fed by nothing but a curriculum, which is killed on the way: the audit is clean.

The engine is simulated; broker, Prism, pipeline, rewards and learner are the real ones.
"""

import signal
import subprocess
import sys

import pytest

from pipelines.audit import audit
from pipelines.drill.rewards import SHARE
from pipelines.drill.run import drill_config
from pipelines.local import stack
from pipelines.log import RunReader
from schemas.ledger import surviving_steps
from schemas.prompts import Prompt, RewardSpec
from tests.e2e.test_drill import simulated_worker
from tests.support.curriculum import Pipeline, number_of

pytestmark = pytest.mark.timeout(600)
STEPS, KILL_AFTER = 12, 4


@pytest.fixture
def file(tmp_path):
    """Fewer prompts than the run trains, so that results decide."""
    reward = RewardSpec(name=SHARE, args={"letter": "7"})
    prompts = [Prompt(prompt_id=f"sums/{row}", text=f"What is {row}+7?", reward=reward) for row in range(30)]
    file = tmp_path / "sums.jsonl"
    file.write_bytes(b"".join(prompt.encode() + b"\n" for prompt in prompts))
    return file


def draw(directory, file, log):
    command = [sys.executable, "-m", "pipelines.cli.main", "curriculum", "--run", str(directory), "--files", str(file)]
    return subprocess.Popen([*command, "--reward-high", "0.1"], stdout=log, stderr=log)


def test_a_stack_trains_what_a_curriculum_draws_also_when_it_is_killed(tmp_path, monkeypatch, file):
    monkeypatch.setattr(stack.Stack, "_worker_spec", simulated_worker)
    config = drill_config("curriculum", 1)
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"steps": STEPS})})
    with (tmp_path / "log").open("ab") as log, stack.Stack(config, runs=tmp_path, restarts=3) as running:
        running.start_serving()
        running.start_rollout()
        reader = RunReader(running.config.kafka, config.name)
        sources = [draw(running.directory, file, log)]

        def kill_once():
            if len(sources) == 1 and len(surviving_steps(reader.advance().ledger)) >= KILL_AFTER:
                sources[0].kill()
                assert sources[0].wait() == -signal.SIGKILL
                sources.append(draw(running.directory, file, log))

        running.wait(kill_once)
        sources[-1].terminate()
        assert sources[-1].wait(60) == 0, (tmp_path / "log").read_text()
        with Pipeline(running.config) as pipeline:
            written = [prompt for _, prompt in pipeline.prompts()]
        verdict = audit(config.name, reader.advance())
        reader.close()
    assert len(sources) == 2
    assert [number_of(prompt) for prompt in written] == list(range(1, len(written) + 1))
    assert verdict.ok, verdict
    assert verdict.steps == STEPS
    rates = [prompt.metadata["curriculum"]["pass_rate"] for prompt in written]
    assert len([rate for rate in rates if rate is not None]) > 10, "what was seen was drawn again"
