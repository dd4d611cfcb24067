"""The supervisor with small real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.local import supervisor as supervisor_module
from pipelines.local.leftovers import Leader, end_leftovers, family, identify, save
from pipelines.local.supervisor import Spec, Supervisor
from schemas.errors import ProcessDied, UserError

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
WITH_CHILD = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print(p.pid, flush=True); time.sleep(60)"
)


def spec(name, code, **options):
    return Spec(name, [sys.executable, "-c", code], dict(os.environ), **options)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)
    return found


def tick_until(supervisor, condition, timeout_s=60):
    def tick():
        supervisor.tick()
        return condition()

    return wait_for(tick, timeout_s)


@pytest.fixture
def supervisor(tmp_path):
    with Supervisor(tmp_path / "logs", tmp_path) as running:
        yield running


def test_a_process_that_dies_at_once_is_named_with_the_last_lines_of_its_log(supervisor):
    supervisor.start(spec("learner", "print('the last words'); raise SystemExit(3)"))
    with pytest.raises(ProcessDied, match=r"(?s)learner ended \(exit code 3\).*learner\.log.*the last words"):
        tick_until(supervisor, lambda: False)


def test_a_process_that_dies_later_is_named_with_its_signal(supervisor):
    supervisor.start(spec("worker", SLEEP))
    supervisor.wait_ready("worker")
    os.kill(supervisor.pid("worker"), signal.SIGKILL)
    with pytest.raises(ProcessDied, match=r"worker ended \(signal SIGKILL\), .* more memory than .* --dry-run"):
        tick_until(supervisor, lambda: False)


def test_a_process_that_may_die_once_is_started_again_after_a_pause(supervisor):
    supervisor.start(spec("worker", SLEEP, restarts=1))
    supervisor.wait_ready("worker")
    first = supervisor.pid("worker")
    os.kill(first, signal.SIGKILL)
    died_at = time.monotonic()
    second = tick_until(supervisor, lambda: supervisor.pid("worker") not in (None, first) and supervisor.pid("worker"))
    assert time.monotonic() - died_at >= 1
    assert supervisor.deaths() == {"worker": 1}
    os.kill(second, signal.SIGKILL)
    with pytest.raises(ProcessDied):
        tick_until(supervisor, lambda: False)


def test_pauses_grow_for_a_process_that_never_works_and_start_over_for_one_that_did(supervisor, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(supervisor_module, "_QUICK_DEATH_S", 0.5)
    supervisor.start(
        spec("never", "raise SystemExit(1)", ready=lambda: False, restarts=9),
        spec("works", "import time; time.sleep(1); raise SystemExit(1)", restarts=9),
    )
    tick_until(supervisor, lambda: supervisor.deaths()["works"] == 3)
    assert supervisor._children["works"].pause_s == 0.4  # for the fourth death, were it a quick one
    assert supervisor._children["never"].pause_s > 0.4


def test_exit_code_2_shows_the_message_and_is_not_tried_again(supervisor, tmp_path):
    code = (
        "import sys; print('started'); print('asyncflow learn: model.path: give one'); print('  or not'); sys.exit(2)"
    )
    supervisor.start(spec("learner", code, restarts=5))
    with pytest.raises(UserError) as raised:
        tick_until(supervisor, lambda: False)
    assert str(raised.value) == "asyncflow learn: model.path: give one\n  or not"


def test_exit_code_2_of_a_process_that_has_worked_is_a_death_like_any_other(supervisor):
    code = "import sys, time; time.sleep(1); print('asyncflow learn: disk full'); sys.exit(2)"
    supervisor.start(spec("learner", code, ready=lambda: True, restarts=1))
    tick_until(supervisor, lambda: supervisor.deaths()["learner"] == 1 and supervisor.pid("learner"))
    with pytest.raises(UserError, match=r"^asyncflow learn: disk full$"):
        tick_until(supervisor, lambda: False)


def test_exit_code_0_is_a_death_unless_the_process_is_meant_to_end(supervisor):
    supervisor.start(spec("learner", "pass", ends=True), spec("rollout", SLEEP))
    tick_until(supervisor, lambda: supervisor.is_done("learner"))
    supervisor.start(spec("other", "pass"))
    with pytest.raises(ProcessDied, match="other ended"):
        tick_until(supervisor, lambda: False)


def test_a_process_that_never_gets_ready_is_named(supervisor):
    supervisor.start(spec("worker", SLEEP, ready=lambda: False, ready_timeout_s=0.3))
    with pytest.raises(ProcessDied, match=r"worker was not ready within 0\.3 s"):
        supervisor.wait_ready("worker")


def test_ready_is_asked_until_it_says_so(supervisor):
    answers = iter([False, False, True])
    supervisor.start(spec("worker", SLEEP, ready=lambda: next(answers)))
    supervisor.wait_ready("worker")
    assert next(answers, "asked three times") == "asked three times"


@pytest.mark.timed
def test_one_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    supervisor = Supervisor(tmp_path / "logs", tmp_path)
    supervisor.start(spec("worker", STUBBORN, grace_s=0.5))
    wait_for(lambda: "up" in supervisor.log("worker").read_text())
    pid, started = supervisor.pid("worker"), time.monotonic()
    supervisor.stop()
    assert not alive(pid)
    assert 0.5 <= time.monotonic() - started < 3


@pytest.mark.parametrize(("same_s", "may_end"), [(60.0, True), (0.0, False)])
def test_a_second_ctrl_c_kills_unless_it_comes_at_once(tmp_path, monkeypatch, same_s, may_end):
    monkeypatch.setattr(supervisor_module, "SAME_S", same_s)
    code = (
        "import os, signal, sys, time\n"
        "def end(*_):\n"
        f"    os.kill({os.getpid()}, signal.SIGINT); time.sleep(0.3); print('ended', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
    )
    supervisor = Supervisor(tmp_path / "logs", tmp_path)
    supervisor.start(spec("learner", code))
    wait_for(lambda: "up" in supervisor.log("learner").read_text())
    supervisor.stop()
    assert ("ended" in supervisor.log("learner").read_text()) == may_end


def test_the_last_stage_ends_first(tmp_path):
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    time.sleep(0.2); open({str(order)!r}, 'a').write(sys.argv[1]); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
    )
    with Supervisor(tmp_path / "logs", tmp_path) as supervisor:
        for name in "abc":
            supervisor.start(Spec(name, [sys.executable, "-c", code, name], dict(os.environ)))
            log = supervisor.log(name)
            wait_for(lambda log=log: "up" in log.read_text())
    assert order.read_text() == "cba"


def test_grandchildren_end_with_their_parent(supervisor):
    supervisor.start(spec("worker", WITH_CHILD, restarts=1))
    grandchild = int(wait_for(lambda: supervisor.log("worker").read_text().strip()))
    assert alive(grandchild)
    os.kill(supervisor.pid("worker"), signal.SIGKILL)
    tick_until(supervisor, lambda: supervisor.deaths()["worker"] == 1)
    wait_for(lambda: not alive(grandchild))


def test_bound_processes_are_started_again_together(supervisor):
    both = [spec(name, SLEEP, restarts=1, bound="pipeline") for name in ("prism", "rollout")]
    supervisor.start(*both, spec("worker", SLEEP))
    supervisor.wait_ready("prism", "rollout", "worker")
    before = {name: supervisor.pid(name) for name in ("prism", "rollout", "worker")}
    os.kill(before["prism"], signal.SIGKILL)
    tick_until(supervisor, lambda: supervisor.deaths()["prism"] == 1)
    assert not alive(before["rollout"])
    tick_until(supervisor, lambda: supervisor.pid("prism") and supervisor.pid("rollout"))
    assert supervisor.pid("rollout") != before["rollout"]
    assert supervisor.pid("worker") == before["worker"]
    assert supervisor.deaths() == {"prism": 1, "rollout": 0, "worker": 0}


def test_a_missing_program_is_named(supervisor):
    supervisor.start(Spec("kafka", ["/nowhere/java"], {}))
    with pytest.raises(ProcessDied, match="cannot start /nowhere/java"):
        tick_until(supervisor, lambda: False)


SUPERVISE = """
import os, sys, time
from pathlib import Path
from pipelines.local.supervisor import Spec, Supervisor
supervisor = Supervisor(Path(sys.argv[1]) / "logs", Path(sys.argv[1]))
supervisor.start(Spec("worker", [sys.executable, "-c", sys.argv[2]], dict(os.environ)))
while True:
    supervisor.tick()
    time.sleep(0.05)
"""


def test_nothing_is_left_when_the_supervisor_itself_is_killed(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path), WITH_CHILD])
    log = tmp_path / "logs" / "worker.log"
    grandchild = int(wait_for(lambda: log.exists() and log.read_text().strip()))
    (record,) = tmp_path.glob("pids.*.json")
    worker = json.loads(record.read_text())[0]["pid"]
    owner.kill()
    owner.wait()
    wait_for(lambda: not alive(worker) and not alive(grandchild))
    wait_for(lambda: not record.exists())


def test_the_next_supervisor_ends_what_an_earlier_one_left(tmp_path):
    left = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    save(tmp_path / "pids.1-1.json", [identify("worker", left.pid)])
    with Supervisor(tmp_path / "logs", tmp_path):
        assert left.wait(60) == -signal.SIGKILL
    assert not list(tmp_path.glob("pids.*"))


@pytest.mark.parametrize("change", [{"started": -1}, {"boot": "another"}])
def test_a_process_that_only_has_the_recorded_id_is_left_alone(tmp_path, change):
    innocent = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    try:
        real = identify("worker", innocent.pid)
        other = Leader(**{"name": "worker", "pid": real.pid, "started": real.started, "boot": real.boot, **change})
        save(tmp_path / "pids", [other])
        assert family(real) == [innocent.pid]
        assert end_leftovers(tmp_path / "pids") == []
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_ctrl_c_of_the_terminal_does_not_reach_the_processes(supervisor):
    supervisor.start(spec("worker", SLEEP))
    assert os.getpgid(supervisor.pid("worker")) != os.getpgid(0)
    assert os.getsid(supervisor.pid("worker")) == supervisor.pid("worker")
