"""However a pipeline's process ends, nothing of its reward processes stays, though a reward hangs."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from pipelines.local.leftovers import family, identify
from schemas.config import RewardsConfig
from tests.pipeline.rollout_process import wait_for
from transforms.rewards.processes import RewardProcesses

MODULE = "tests.unit.transforms.rewards.bad_rewards"
PIPELINE = f"""
import os, sys, time
from dataclasses import replace
from schemas.config import RewardsConfig
from schemas.prompts import RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards.processes import RewardProcesses
from transforms.rewards.scoring import score_samples

processes = RewardProcesses(RewardsConfig(processes=2, timeout_s=600, modules=("{MODULE}",)))
processes.submit(os.getpid).result()
if sys.argv[1]:
    sample = replace(SAMPLE, response_text="bad", worker=sys.argv[1])
    processes.submit(score_samples, RewardSpec(name="starts_a_daemon_and_hangs"), [sample])
    while not os.path.exists(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
        time.sleep(0.01)
print("up", flush=True)
sys.stdin.read(1)
if len(sys.argv) > 2:
    os._exit(0)
"""


@pytest.fixture
def pipeline(tmp_path):
    """Starts one, with a reward that hangs, or at rest; ends what is left of it."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", PIPELINE, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, start_new_session=True, **pipes))
        assert started[-1].stdout.readline() == b"up\n"
        below.extend(psutil.Process(started[-1].pid).children(recursive=True))
        if arguments[0]:
            below.append(psutil.Process(int((tmp_path / "pid").read_text())))
        return started[-1], below

    below = []
    yield start
    for process in [*started, *filter(runs, below)]:
        process.kill()
    for process in started:
        process.wait()
        process.stdin.close()
        process.stdout.close()


def runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "exits at once", "returns"])
def test_nothing_outlives_a_pipeline_whose_reward_hangs(pipeline, tmp_path, end):
    process, below = pipeline(str(tmp_path / "pid"), *(["at once"] if end == "exits at once" else []))
    assert len(below) >= 5, "the fork server, its tracker, two processes and the daemon"
    if isinstance(end, signal.Signals):
        process.send_signal(end)
    else:
        process.stdin.close()
    process.wait(60)
    wait_for(lambda: not any(map(runs, below)), 30)


def test_after_a_pipeline_that_returns_a_supervisor_finds_nothing(pipeline):
    process, _ = pipeline("")
    leader = identify("pipeline", process.pid)
    process.stdin.close()
    assert process.wait(60) == 0
    assert family(leader) == []


def test_a_fork_server_that_was_killed_is_started_again():
    processes = RewardProcesses(RewardsConfig(processes=1, timeout_s=60))
    try:
        first = psutil.Process(processes.submit(os.getpid).result(60))
        server = first.parent()
        server.kill()
        wait_for(lambda: not runs(first), 30)
        second = psutil.Process(processes.submit(os.getpid).result(60))
        assert runs(second)
        assert second.parent().pid != server.pid
    finally:
        processes.stop()
