"""Ctrl-C and SIGTERM: exit codes, the one line, and that nothing stays."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.cli import learn, logs
from pipelines.cli.interrupts import Interrupted, sigterm_is_ctrl_c
from pipelines.cli.main import main
from pipelines.local.supervisor import signals_wait
from pipelines.runs import is_locked, lock_run
from tests.support.models import write_model

ROOT = Path(__file__).parents[4]
HOLDS_LOCK = (
    "import sys, time; from pathlib import Path; from pipelines.runs import lock_run;"
    "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("number", "code", "how"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_signal_ends_a_verb_with_the_code_of_shells_and_one_line(monkeypatch, capsys, number, code, how):
    def verb(_):
        with sigterm_is_ctrl_c():
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            except KeyboardInterrupt as interrupt:
                interrupt.add_note("ended worker, kafka")
                raise

    monkeypatch.setattr(logs, "configure_logging", lambda: None)
    monkeypatch.setattr(learn, "main", verb)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest itself may run under nohup
    try:
        assert main(["learn"]) == code
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == f"asyncflow learn: ended by {how}; ended worker, kafka\n"


def test_a_second_signal_at_once_is_the_same_one_and_a_later_one_counts(monkeypatch):
    with sigterm_is_ctrl_c():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        later = time.monotonic() + 2
        monkeypatch.setattr("pipelines.cli.interrupts.time.monotonic", lambda: later)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with sigterm_is_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_a_process_is_started_comes_when_it_is_known():
    known = []
    with sigterm_is_ctrl_c(), pytest.raises(Interrupted), signals_wait():  # noqa: PT012 - the order is what is tested
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        known.append("pid")
    assert known == ["pid"]


def test_the_lock_of_a_process_that_was_killed_is_none(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout.readline() == "held\n"
    assert is_locked(tmp_path)
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").exists()
    assert not is_locked(tmp_path)
    lock_run(tmp_path).close()


def test_sigterm_while_the_broker_starts_leaves_nothing_running(tmp_path):
    write_model(tmp_path / "model")
    command = [sys.executable, "-m", "pipelines.cli.main", "up", "--model", "model", "--name", "x"]
    log = tmp_path / "log"
    with log.open("w") as said:
        up = subprocess.Popen(
            command, cwd=tmp_path, stderr=said, stdout=said, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    started = _wait_for(lambda: re.search(r"pid=(\d+) process=kafka", log.read_text()) or up.poll() is not None)
    assert up.poll() is None, log.read_text()
    up.terminate()
    assert up.wait(60) == 143
    last = log.read_text().splitlines()[-1]
    assert last == "asyncflow up: ended by SIGTERM; ended kafka; go on with asyncflow up --name x --resume"
    assert not psutil.pid_exists(int(started[1]))
    assert not list((tmp_path / "runs" / "x").glob("pids.*"))
    assert not is_locked(tmp_path / "runs" / "x")


def _wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.05)
    return found
