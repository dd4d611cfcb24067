"""Mistakes of a stranger: one message that says what was given, what was expected and what to do; exit code 2."""

import io
import json

import pytest

from pipelines.cli.taken import Start, choose_start
from pipelines.runs import lock_run
from schemas.errors import RecordError, RunError
from schemas.ledger import decode_entry
from schemas.prompts import Prompt
from tests.support.cli import refused

FILES = {
    "key.toml": "[learner]\n\nstepps = 3\n",
    "section.toml": "[rollout]\nmax_tokens = 3\n",
    "learner.toml": "[learner]\ngroup_size = 3\n",
    "type.toml": '[learner]\nsteps = "many"\n',
    "table.toml": "learner = 3\n",
    "objective.toml": '[learner.objective]\nname = "grpoo"\n',
    "correction.toml": '[learner.objective]\ncorrection = "truncated_tokn"\n',
    "advantage.toml": '[learner.objective]\nadvantage = "group_normalized"\n',
    "sizes.toml": "[rollout]\ngroup_size = 65\n",
    "included.toml": 'include = ["key.toml"]\nname = "x"\n',
    "ring.toml": 'include = ["ring.toml"]\n',
    "secret.toml": '[kafka.client]\nsasl_plain_password = "hunter2"\n',
    "unset.toml": '[kafka.client]\nsasl_plain_password = "{env:ASYNCFLOW_UNSET}"\n',
    "empty/config.json": "{}",
    "runs/taken/config.toml": 'name = "taken"\n',
    "runs/taken/lock": "of a process that died long ago\n",
}
MISTAKES = [
    ("learn --config key.toml", "unknown key learner.stepps; did you mean steps? (key.toml:3)"),
    ("learn --config included.toml", "did you mean steps? (key.toml:3)"),
    ("learn --config ring.toml", "ring.toml includes itself: ring.toml → ring.toml"),
    ("rollout --config section.toml", "rollout.max_tokens", "rollout.sampling.max_tokens", "(section.toml:2)"),
    ("learn --config learner.toml", "unknown key learner.group_size; did you mean rollout.group_size?"),
    ("learn --config type.toml", "learner.steps = 'many': Input should be a valid integer", "(type.toml:2)"),
    ("learn --config table.toml", "learner = 3", "(table.toml:1)"),
    ("learn --config objective.toml", "learner.objective.name = 'grpoo'", "did you mean grpo?"),
    ("learn --config correction.toml", "did you mean truncated_token?"),
    ("learn --config advantage.toml", "did you mean group_normalised?"),
    ("learn --learner.objective.correction icepopp", "did you mean icepop?"),
    ("learn --learner.objective.advantage rlooo", "did you mean rloo?"),
    ("worker --config sizes.toml", "rollout.group_size = 65 exceeds worker.max_num_seqs = 64"),
    ("worker --config secret.toml", "kafka.client: sasl_plain_password is written out", "{file:PATH}"),
    ("topics --config unset.toml", "the environment variable ASYNCFLOW_UNSET is not set"),
    ("topics --kafka.client security_protokol SSL", "kafka.client: kafka-python refuses these settings"),
    ("learn --learner.steps many", "--learner.steps 'many': expected a whole number"),
    ("learn --steps 3", "unknown flag --steps; did you mean --learner.steps or --scorer.steps or --federation.steps?"),
    ("rollout --learner.steps many", "--learner.steps 'many': expected a whole number"),
    ("up --preset gpu-2", "no preset 'gpu-2'; did you mean gpu-"),
    ("up --name taken", "run 'taken' exists already", "--resume", "--if-exists new"),
    ("up --name taken --if-exists stop", "run 'taken' exists already"),
    ("up --name taken --if-exists resum", "did you mean resume?"),
    ("up --name taken --if-exists new --resume", "--resume and --if-exists new: give one of them"),
    ("up --name taken --resume --preset demo", "leave --config and --preset out"),
    ("up --name taken --if-exists new --model none", "model.path = 'none': no such directory"),
    ("up --name free --model empty", "lacks tokenizer.json, *.safetensors", "--model DIR"),
    ("submit glu --data data --out x", "no task 'glu'; did you mean glue?"),
    ("submit glue --data data --args tasks=sst --out x", "no task 'sst' in glue; did you mean sst2?"),
    ("simulate-users --first shrt", "did you mean short"),
    ("drill --faults kill-lerner", "no fault 'kill-lerner'; did you mean kill learner?"),
    ("audit takn", "no run 'takn'", "did you mean taken?"),
    ("config", "asyncflow config show"),
    ("config sho", "no subverb 'sho'; did you mean show?"),
    ("config show nothing.toml", "'nothing.toml' is no file, no run and no preset"),
    ("config show key.toml --preset demo", "give the one configuration that is meant"),
    ("config show --json key.toml", "unknown key learner.stepps; did you mean steps? (key.toml:3)"),
    ("config show --preset=demo --json key.toml", "give the one configuration that is meant"),
    ("learn --kafka.client sasl_plain_password hunter2", "sasl_plain_password is written out"),
    ("config check --ranks 0", "--ranks 0: expected 1 or more"),
    ("lern", "no verb 'lern'; did you mean learn?"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the files above, as the working directory, and nobody at the terminal."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("line", "parts"), [(line, parts) for line, *parts in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_told_in_one_message(asyncflow, line, parts):
    done = asyncflow(*line.split())
    assert refused(done, *parts)
    assert "hunter2" not in done.stderr


def test_a_lock_that_nobody_holds_is_no_mistake_and_one_that_is_held_says_so(place):
    run = place / "runs" / "taken"
    with lock_run(run), pytest.raises(RunError, match=r"run 'taken' is in use .*end that one first"):
        lock_run(run)
    lock_run(run).close()


@pytest.mark.parametrize("decode", [Prompt.decode, decode_entry])
def test_a_record_of_another_release_is_told(decode):
    entry = {"schema": 7, "kind": "checkpoint", "generation": 1, "step": 1, "manifest_sha256": "0" * 64, "text": "x"}
    with pytest.raises(RecordError, match="version 7 of the record, this release reads version 1; use the release"):
        decode(json.dumps(entry).encode())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("answer", "start"), [("resume", Start("taken", True)), ("new", Start("taken-2", False)), ("stop", None)]
)
def test_who_starts_a_run_whose_name_is_taken_is_asked(answer, start):
    asked = []
    if start is None:
        with pytest.raises(RunError, match="exists already"):
            choose_start("taken", None, lambda name: answer)
    else:
        assert choose_start("taken", None, lambda name: asked.append(name) or answer) == start
        assert asked == ["taken"]
    assert choose_start("free", None, lambda name: pytest.fail("asked")) == Start("free", False)
