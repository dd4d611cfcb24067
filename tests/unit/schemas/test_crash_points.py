"""A crash point does nothing unless it is on and armed; then it is taken once, by one process."""

import os
import signal
import subprocess
import sys

import pytest

from schemas import crash_points
from schemas.crash_points import arm, crash_point, disarm, hits

PASS_THREE_TIMES = """
from schemas.crash_points import crash_point
for number in range(3):
    crash_point("after_step")
    print(number, flush=True)
"""


def run(room=None):
    environment = {**os.environ, **({crash_points.VARIABLE: str(room)} if room else {})}
    return subprocess.Popen(
        [sys.executable, "-c", PASS_THREE_TIMES], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_points_are_off_without_the_variable(tmp_path):
    arm(tmp_path, "after_step")
    process = run()
    assert process.communicate()[0].split() == ["0", "1", "2"]
    assert process.returncode == 0
    assert not hits(tmp_path, "after_step")


def test_an_armed_point_kills_the_first_that_comes_and_leaves_a_witness(tmp_path):
    arm(tmp_path, "after_step")
    first, second = run(tmp_path), run(tmp_path)
    codes = sorted(process.wait(60) for process in (first, second))
    assert codes == [-signal.SIGKILL, 0]
    assert len(hits(tmp_path, "after_step")) == 1


def test_a_stopped_process_goes_on_when_it_is_woken(tmp_path):
    arm(tmp_path, "after_step", "stop")
    process = run(tmp_path)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert len(hits(tmp_path, "after_step")) == 1
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0].split() == ["0", "1", "2"]


def test_each_hit_has_a_witness_of_its_own(tmp_path):
    for _ in range(3):
        arm(tmp_path, "after_step")
        assert run(tmp_path).wait(60) == -signal.SIGKILL
    assert len(hits(tmp_path, "after_step")) == 3


def test_a_disarmed_point_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(crash_points.VARIABLE, str(tmp_path))
    arm(tmp_path, "after_step")
    disarm(tmp_path, "after_step")
    crash_point("after_step")
    assert not hits(tmp_path, "after_step")


def test_an_unknown_point_cannot_be_armed(tmp_path):
    with pytest.raises(ValueError, match="no crash point 'after_stop'"):
        arm(tmp_path, "after_stop")
