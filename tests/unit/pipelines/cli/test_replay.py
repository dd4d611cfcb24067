"""``asyncflow replay``: what it prints, and its exit codes."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pipelines.cli.main import VERBS, main
from schemas.config import RunConfig
from schemas.errors import RunError
from trainers.replay import Replay

FOUND = Replay(
    run="demo", step=5, version=6, from_checkpoint=3, steps_replayed=2, groups=6, samples=24, tokens=240,
    expected_sha256="ab" * 32, got_sha256="ab" * 32, stored="gone", equal=True, seconds=1.5,
)  # fmt: skip


@pytest.fixture
def asyncflow(monkeypatch, capsys):
    """Runs the verb with a replay that finds what it is told; returns exit code, output and asked-for step."""
    calls = []

    @contextmanager
    def served(run, bootstrap, file):
        calls.append((run, bootstrap))
        yield RunConfig(name="demo")

    def call(found, *arguments):
        def replay(config, ranks, step):
            calls.append(step)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr("trainers.replay.replay", replay)
        code = main(["replay", *arguments])
        return code, capsys.readouterr(), calls

    monkeypatch.setattr("pipelines.cli.logs.configure_logging", lambda: None)
    monkeypatch.setattr("pipelines.runs.served", served)
    monkeypatch.setattr("trainers.ranks.Ranks", lambda: SimpleNamespace(leave=lambda: None))
    return call


def test_equal_weights_are_one_json_object_and_exit_code_0(asyncflow):
    code, said, calls = asyncflow(FOUND, "runs/demo", "--step", "5", "--bootstrap", "h:1")
    assert (code, calls) == (0, [("runs/demo", "h:1"), 5])
    assert json.loads(said.out) == FOUND.model_dump()
    assert said.err == ""


def test_without_a_step_it_is_the_last_one(asyncflow):
    assert asyncflow(FOUND, "demo")[2] == [("demo", None), None]


def test_other_bits_are_exit_code_1(asyncflow):
    code, said, _ = asyncflow(FOUND.model_copy(update={"equal": False}), "demo")
    assert code == 1
    assert json.loads(said.out)["equal"] is False


def test_what_cannot_be_replayed_is_one_message_and_exit_code_2(asyncflow):
    code, said, _ = asyncflow(RunError("step 9 is not on the surviving line"), "demo", "--step", "9")
    assert (code, said.out) == (2, "")
    assert said.err == "asyncflow replay: step 9 is not on the surviving line\n"


def test_a_run_that_does_not_exist_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("pipelines.cli.logs.configure_logging", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert main(["replay", "nowhere"]) == 2
    assert "no run 'nowhere'" in capsys.readouterr().err


def test_the_verb_is_in_the_list():
    assert "replay" in VERBS
