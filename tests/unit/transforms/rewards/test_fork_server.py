"""However a pipeline's process ends, nothing of its reward processes stays, though a reward hangs."""

import multiprocessing.spawn
import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from pipelines.local.leftovers import family, identify
from schemas.config import RewardsConfig
from tests.pipeline.rollout_process import wait_for
from tests.support.installed import ROOT
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
if sys.argv[1]:
    sample = replace(SAMPLE, response_text="bad", worker=sys.argv[1])
    processes.submit(score_samples, RewardSpec(name="starts_a_daemon_and_hangs"), [sample])
processes.submit(os.getpid).result()  # by the other process, if one hangs
if sys.argv[1]:
    while not os.path.exists(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
        time.sleep(0.01)
print("up", flush=True)
sys.stdin.read(1)
if len(sys.argv) > 2:
    os._exit(0)
"""


UNGUARDED = """
import os
from schemas.config import RewardsConfig
from transforms.rewards.processes import RewardProcesses
print(RewardProcesses(RewardsConfig(processes=1, timeout_s=600)).submit(os.getpid).result())
"""
IN_A_FORK_SERVER = """
import os, sys, time
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    parent = os.getppid()
    with open("at.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename("at.tmp", "at")
    while os.getppid() == parent:
        time.sleep(0.01)
"""
"""Python runs it when it starts; this one waits until whoever started the fork server has ended."""
STUCK = """
import threading, time, types
from transforms.rewards import fork_server

begun = threading.Event()
stuck = types.SimpleNamespace(start=lambda: (begun.set(), time.sleep(600)))
threading.Thread(target=fork_server.start, args=(stuck,), daemon=True).start()
begun.wait()
"""


def start_python(*arguments, **options):
    """Starts one in a session of its own that finds the packages wherever it runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(options.get("cwd", ROOT)), str(ROOT)])}
    return subprocess.Popen([sys.executable, *arguments], start_new_session=True, env=environment, **options)


def runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(process, below=()):
    """Ends a process that a test started, and what it started and left."""
    with suppress(psutil.NoSuchProcess):
        below = [*below, *psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.wait()
    for each in filter(runs, below):
        with suppress(psutil.NoSuchProcess):
            each.kill()


@pytest.fixture
def pipeline(tmp_path):
    """Starts one, with a reward that hangs, or at rest; ends what is left of it."""
    started = []

    def start(*arguments):
        started.append(start_python("-c", PIPELINE, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"up\n"
        below.update(psutil.Process(started[-1].pid).children(recursive=True))
        if arguments[0]:
            below.add(psutil.Process(int((tmp_path / "pid").read_text())))
        return started[-1], below

    below = set()
    yield start
    for process in started:
        end(process, below)
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "exits at once", "returns"])
def test_nothing_outlives_a_pipeline_whose_reward_hangs(pipeline, tmp_path, end):
    process, below = pipeline(str(tmp_path / "pid"), *(["at once"] if end == "exits at once" else []))
    assert len(below) >= 5, "the fork server, its tracker, two processes and the daemon"
    if isinstance(end, signal.Signals):
        process.send_signal(end)
    else:
        process.stdin.close()
    process.wait(60)
    wait_for(lambda: not any(map(runs, below)), 60)


def test_after_a_pipeline_that_returns_a_supervisor_finds_nothing(pipeline):
    process, _ = pipeline("")
    leader = identify("pipeline", process.pid)
    process.stdin.close()
    assert process.wait(60) == 0
    assert family(leader) == []


def test_a_script_that_is_its_own_reward_process_is_told_so_and_ends(tmp_path):
    (tmp_path / "mine.py").write_text(UNGUARDED)
    process = start_python("mine.py", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 1
    assert "if __name__ == '__main__':" in said
    assert "ProcessDied" in said


def test_a_process_ends_although_one_that_it_starts_does_not_come():
    process = start_python("-c", STUCK)
    try:
        assert process.wait(60) == 0
    finally:
        end(process)


def test_a_fork_server_that_comes_up_after_its_pipeline_has_ended_ends_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(IN_A_FORK_SERVER)
    (tmp_path / "takes_long.py").write_text("import time; time.sleep(600)")
    (tmp_path / "mine.py").write_text(UNGUARDED.replace("600", "600, modules=('takes_long',)"))
    process, at = start_python("mine.py", cwd=tmp_path), tmp_path / "at"
    below = []
    try:
        wait_for(at.exists, 60)
        below.append(psutil.Process(int(at.read_text())))
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(runs, below)), 60)
    finally:
        end(process, below)


@pytest.fixture
def start_processes():
    """Starts a RewardProcesses with one process."""
    started = []

    def start():
        started.append(RewardProcesses(RewardsConfig(processes=1, timeout_s=60)))
        return started[-1]

    yield start
    for processes in started:
        processes.stop()


def process_of(processes):
    return psutil.Process(processes.submit(os.getpid).result(100))


def kill(server):
    """Until whoever asks for it is told that it is dead: a zombie with threads that still end is not."""
    server.kill()
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


def test_to_stop_some_leaves_the_others_whoever_found_the_fork_server_dead(start_processes, monkeypatch):
    kept, stopped = start_processes(), start_processes()
    server, prepare = process_of(kept).parent(), multiprocessing.spawn.get_preparation_data

    def kill_the_server_first(name):
        if name == "rewards" and runs(server):  # the server has been found alive, and is asked next
            kill(server)
        return prepare(name)

    monkeypatch.setattr(multiprocessing.spawn, "get_preparation_data", kill_the_server_first)
    server_now, process = process_of(stopped).parent(), process_of(kept)
    (thread,) = stopped._threads
    stopped.stop()
    wait_for(lambda: not os.path.exists(f"/proc/self/task/{thread.native_id}"), 60, poll_s=0.01)
    assert process_of(start_processes()).parent() == server_now  # whatever it was sent before, it has had
    assert process_of(kept) == process


def test_a_fork_server_that_was_killed_is_started_again(start_processes):
    processes = start_processes()
    first = process_of(processes)
    server = first.parent()
    kill(server)
    wait_for(lambda: not runs(first), 60)
    second = process_of(processes)
    assert runs(second)
    assert second.parent().pid != server.pid
