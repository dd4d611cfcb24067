"""``--dry-run`` of every verb: what it prints and with which code it ends, and that nothing is there afterwards."""

import contextlib
import json
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from pipelines.cli import logs
from pipelines.cli.main import main
from pipelines.dry_run import facts, scorer
from pipelines.local.machine import Memory
from pipelines.local.ports import free_ports
from tests.support.models import write_model

PROMPT = {"prompt_id": "1", "messages": [{"role": "user", "content": "2+3?"}],
          "reward": {"name": "last_number", "args": {"answer": "5"}}}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a model and prompts, an empty cache that nobody makes, and room, whatever else runs."""
    monkeypatch.setattr(logs, "configure_logging", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (facts, scorer):
        monkeypatch.setattr(module, "memory", lambda: Memory(16 << 30, 12 << 30))
        monkeypatch.setattr(module, "gpus", lambda: ())
    monkeypatch.setattr(facts, "free_bytes", lambda _: 50 << 30)
    write_model(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text(json.dumps(PROMPT) + "\n")
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.fixture
def rehearse(place, capsys):
    """Runs a verb with ``--dry-run`` and compares the files before and after."""

    def call(*arguments):
        before = files(place)
        code = main([*map(str, arguments), "--dry-run"])
        assert files(place) == before
        return code, capsys.readouterr().out

    return call


def files(place):
    return {str(path): path.stat().st_mtime_ns for path in place.rglob("*")}


def topics_of(bootstrap):
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        return set(admin.list_topics())
    finally:
        admin.close()


def test_up_and_demo_tell_what_they_would_start(rehearse):
    code, page = rehearse("up", "--model", "model", "--prompts", "prompts.jsonl", "--gateway", "--name", "x")
    assert code == 0, page
    for part in ("run x in runs/x, new", "downloaded", "1 prompts of prompts.jsonl", "gateway: ", "nothing is wrong"):
        assert part in page
    code, page = rehearse("demo", "--model", "model", "--steps", "3")
    assert code == 0, page
    assert "learner.steps 3 × learner.groups_per_step 8 = 24 groups" in page


def test_up_says_what_is_wrong(rehearse):
    code, page = rehearse("up", "--model", "nowhere", "--feedback.key-file", "none.key")
    assert code == 2
    assert "2 wrong:\n" in page
    assert "'nowhere': no such directory" in page
    assert "feedback.key_file: none.key: no such file" in page


def test_modules_and_files_that_hold_rewards_are_looked_for(rehearse, place, monkeypatch):
    monkeypatch.setattr(facts, "_BROKER_TIMEOUT_S", 0.2)
    (place / "mine.py").write_text("")
    _, page = rehearse(
        "rollout", "--kafka.bootstrap", "127.0.0.1:1", "--rewards.modules", "mine.py", "no_such", "no.py"
    )
    assert "rewards.modules: no_such, no.py cannot be imported here" in page


def test_a_run_that_another_process_has_and_one_whose_process_is_dead(rehearse, place):
    from pipelines.runs import lock_run

    (place / "runs" / "x").mkdir(parents=True)
    with lock_run(place / "runs" / "x"):
        code, page = rehearse("up", "--model", "model", "--name", "x")
    assert (code, "another process has it" in page) == (2, True)
    assert (place / "runs" / "x" / "lock").exists()
    assert rehearse("up", "--model", "model", "--name", "x")[0] == 0


COMMANDS = {
    "worker": (),
    "rollout": ("--runner=FlinkRunner",),
    "join-feedback": (),
    "learn": ("--learner.metrics-port", 0),
    "learn-scorer": (),
    "gateway": (),
    "evaluate": ("--prompts", "prompts.jsonl"),
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_process_of_a_run_whose_topics_are_missing_creates_none(rehearse, broker, verb):
    run = ("--name", "unborn", "--kafka.bootstrap", broker, "--model.path", "model")
    worker, gateway = free_ports(2)
    ports = ("--worker.port", worker, "--gateway.port", gateway)
    code, page = rehearse(verb, *run, *ports, *COMMANDS[verb])
    assert code == 2, page
    assert "create the run's topics with asyncflow topics" in page
    assert not any(name.startswith("unborn.") for name in topics_of(broker))


def test_processes_of_a_run_that_exists_have_nothing_wrong(rehearse, run_config, place):
    name, bootstrap = run_config.name, run_config.kafka.bootstrap
    code, page = rehearse("learn", "--name", name, "--kafka.bootstrap", bootstrap, "--model.path", "model")
    assert (code, f"{name}.ledger: partitions 1, copies 1" in page) == (0, True), page
    other = rehearse("learn", "--name", name, "--kafka.bootstrap", bootstrap, "--kafka.partitions", 3)
    assert (other[0], "2 partitions, expected 3" in other[1]) == (2, True)
    code, page = rehearse("submit", "prompts.jsonl", "--run", name, "--bootstrap", bootstrap)
    assert (code, "1 of prompts.jsonl" in page) == (0, True), page
    code, page = rehearse("curriculum", "--run", name, "--bootstrap", bootstrap, "--files", "prompts.jsonl=2")
    assert (code, "1 prompts, 100% of the draws" in page) == (0, True), page


def test_what_belongs_to_no_run(rehearse, place):
    code, page = rehearse("submit", "prompts.jsonl", "--out", "out.jsonl")
    assert (code, "out.jsonl, new" in page) == (0, True)
    assert rehearse("submit", "prompts.jsonl", "--out", "prompts.jsonl")[0] == 2, "it exists, and is not replaced"
    assert rehearse("submit", "prompts.jsonl", "--out", "nowhere/out.jsonl")[0] == 2
    code, page = rehearse("serve-scorer", "--model", "model", "--port", free_ports(1)[0])
    assert (code, "296 parameters × 4 bytes (float32)" in page or "bfloat16" in page) == (0, True)
    assert rehearse("serve-scorer", "--model", "nowhere")[0] == 2
    assert not Path("out.jsonl").exists()
