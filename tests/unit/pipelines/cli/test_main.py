"""The command line: what a wrong call says, and with which exit code."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from pipelines.cli import learn
from pipelines.cli.completion import flags_by_verb
from pipelines.cli.main import VERBS, main
from pipelines.cli.options import parse_process, parse_start_and_rest, peek
from pipelines.local.ports import free_ports
from pipelines.submit import find_unusable, has_prompts, key_of, read_lines
from schemas.config import RunConfig
from schemas.errors import ConfigError, StateError
from schemas.prompts import Prompt
from tests.support.cli import in_process_of_its_own, refused
from tests.support.tasks import write_data


def test_help_comes_at_once_without_heavy_packages():
    code = (
        "import sys, time; from pipelines.cli.main import main; main(['--help']); "
        "print(sorted(sys.modules)); print(time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stderr) < 0.3, "seconds of a core; on a machine that does nothing else these are those of a clock"
    for heavy in ("torch", "apache_beam", "vllm", "kafka", "pydantic", "tyro"):
        assert f"'{heavy}'" not in done.stdout
    assert all(verb in done.stdout for verb in VERBS)


def test_help_groups_the_verbs_and_fits_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    boxed = [line for line in lines if line[:1] in ("╭", "│", "╰")]
    assert {len(line) for line in boxed} == {70}
    titles = re.findall(r"^╭─ ([a-z ]+) ─", "\n".join(lines), re.MULTILINE)
    assert titles == ["start here", "processes", "data", "look and check", "tools"]
    assert sorted(re.findall(r"^│ ([a-z-]+) ", "\n".join(lines), re.MULTILINE)) == sorted(VERBS)


@pytest.mark.parametrize("words", flags_by_verb(VERBS))
def test_every_verb_has_help_with_an_example_and_the_flags_that_are_completed(asyncflow, words):
    done = asyncflow(*words.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"asyncflow {words} " in done.stdout.split("options", 1)[0].split("Example", 1)[1]
    rows = [line for line in done.stdout.splitlines() if re.match(r"[│| ] {1,2}-", line)]
    told = {flag for row in rows for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]", row)}
    completed = {flag.name for flag in flags_by_verb([words.split()[0]])[words] if not flag.name.endswith(".")}
    assert completed == told - {"--run."}


def test_a_wrong_verb_names_the_nearest(asyncflow):
    assert refused(asyncflow("lern"), "no verb 'lern'", "did you mean learn?")


def test_no_verb_shows_the_usage_and_is_an_error(asyncflow):
    done = asyncflow()
    assert done.returncode == 2
    assert "usage: asyncflow VERB" in done.stdout


@pytest.mark.parametrize("verb", ["learn", "up"])
def test_a_wrong_flag_names_the_nearest(verb):
    assert refused(in_process_of_its_own(verb, "--learner.step", "3"), "--learner.step", "--learner.steps")


def test_a_wrong_value_is_named(asyncflow):
    assert refused(asyncflow("learn", "--learner.steps", "many"), "--learner.steps", "many")
    assert refused(asyncflow("learn", "--learner.steps", "0"), "steps", "greater than or equal to 1")


def test_a_configuration_is_found_behind_flags_and_none_is_the_defaults(asyncflow, tmp_path):
    (tmp_path / "run.toml").write_text("[learner]\nsteps = 7\n")
    shown = asyncflow("config", "show", "--json", "run.toml", cwd=tmp_path)
    assert json.loads(shown.stdout)["learner.steps"] == {"value": 7, "origin": "run.toml:2"}
    assert "steps = 24 " in asyncflow("config", "show").stdout


def test_values_that_contradict_each_other_are_named(asyncflow):
    assert refused(asyncflow("topics", "--rollout.shares", "3"), "rollout.shares = 3 exceeds kafka.partitions = 2")


def test_a_wrong_key_in_the_file_names_the_nearest(asyncflow, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[learner]\nstepps = 3\n")
    assert refused(asyncflow("learn", "--config", file), "unknown key learner.stepps", "did you mean steps?")


def test_a_missing_file_and_one_that_is_no_toml_are_named(asyncflow, tmp_path):
    assert refused(asyncflow("learn", "--config", tmp_path / "none.toml"), "none.toml", "No such file")
    (tmp_path / "bad.toml").write_text("[learner\n")
    assert refused(asyncflow("rollout", f"--config={tmp_path}/bad.toml"), "bad.toml", "not TOML")


@pytest.mark.parametrize("words", [["--help"], ["config", "check"]])
def test_a_full_disk_behind_the_output_is_one_line(words):
    command = [sys.executable, "-m", "pipelines.cli.main", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert refused(done, "No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_missing_model_is_named(tmp_path):
    assert refused(
        in_process_of_its_own("up", "--model", "/nowhere", cwd=tmp_path), "asyncflow up: ", "'/nowhere'", "--model DIR"
    )
    assert not (tmp_path / "runs").exists()


def test_a_broker_that_cannot_be_reached_is_one_line():
    (port,) = free_ports(1)
    done = in_process_of_its_own("topics", "--kafka.bootstrap", f"127.0.0.1:{port}")
    assert refused(done, f"asyncflow topics: Kafka at 127.0.0.1:{port} cannot be reached")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["kafka", "audit"])
def test_a_run_that_does_not_exist_is_named(asyncflow, verb, tmp_path):
    assert refused(asyncflow(verb, "nope", cwd=tmp_path), f"asyncflow {verb}: no run 'nope'", "runs/nope/config.toml")


def test_a_run_to_resume_that_does_not_exist_is_named(asyncflow, tmp_path):
    assert refused(asyncflow("up", "--name", "nope", "--resume", cwd=tmp_path), "no run 'nope' to resume")


def test_resume_refuses_another_configuration(asyncflow, tmp_path):
    assert refused(asyncflow("up", "--resume", "--config", "x.toml", cwd=tmp_path), "leave --config and --preset out")


def test_missing_prompts_are_told_before_anything_starts(asyncflow, tmp_path):
    done = asyncflow("up", "--model", tmp_path, "--prompts", tmp_path / "none.jsonl", cwd=tmp_path)
    assert refused(done, "none.jsonl", "No such file")
    assert not (tmp_path / "runs").exists()


def test_a_reward_of_the_users_that_is_wrong_is_told_before_anything_starts(asyncflow, tmp_path):
    (tmp_path / "mine.py").write_text("\nraise KeyError('oops')\n")
    (tmp_path / "run.toml").write_text('[rewards]\nmodules = ["mine.py"]\n')
    done = asyncflow("up", "--model", tmp_path, "--config", "run.toml", cwd=tmp_path)
    assert refused(done, "rewards.modules names mine.py", "KeyError: 'oops'", "(mine.py, line 2)")
    assert not (tmp_path / "runs").exists()


def test_prompts_that_nobody_can_use_are_told_before_anything_starts(asyncflow, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"text": "?", "reward": {"name": "exact_mach", "args": {"answer": "1"}}}\n{}\n')
    done = asyncflow("up", "--model", tmp_path, "--prompts", "p.jsonl", cwd=tmp_path)
    assert refused(done, "none of the prompts can be used", "prompt 1: unknown_reward", "did you mean 'exact_match'?")
    usable = b'{"text": "?", "reward": {"name": "feedback"}}'
    assert [each[:9] for each in find_unusable([usable, b"{}", usable])] == ["prompt 2:"]
    assert not (tmp_path / "runs").exists()


def test_a_task_of_the_users_needs_no_directory_of_data(asyncflow, tmp_path):
    assert refused(asyncflow("submit", "none.py", "--out", "x", cwd=tmp_path), "names none.py", "give an existing file")


def test_submit_wants_exactly_one_way_to_name_the_run(asyncflow, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("{}\n")
    assert refused(asyncflow("submit", file), "exactly one of --run and --config")
    assert refused(asyncflow("submit", file, "--run", "x", "--out", file), "--out writes to a file")


@pytest.mark.parametrize("verb", ["audit", "report", "top", "replay"])
def test_who_reads_a_run_names_it_in_exactly_one_way(asyncflow, tmp_path, verb):
    file = tmp_path / "run.toml"
    file.write_text('name = "x"\n')
    for given in ((), ("x", "--config", file)):
        assert refused(asyncflow(verb, *given, cwd=tmp_path), "exactly one of NAME and --config")
    assert refused(asyncflow(verb, "--config", tmp_path / "none.toml", cwd=tmp_path), "none.toml")


def test_submit_writes_a_task_to_a_file(asyncflow, tmp_path):
    data, out = write_data(tmp_path), tmp_path / "prompts.jsonl"
    done = asyncflow(
        "submit", "translation", "--data", data, "--args", "to=fr", "--split", "held_out", "--limit", 2, "--out", out
    )
    assert (done.returncode, done.stdout) == (0, "2 prompts\n"), done.stderr
    prompts = [Prompt.decode(line) for line in out.read_bytes().splitlines()]
    assert [prompt.task for prompt in prompts] == ["translation-fr"] * 2
    done = asyncflow("submit", "support", "--data", data, "--feedback-share", 0.25, "--out", tmp_path / "support.jsonl")
    first = Prompt.decode((tmp_path / "support.jsonl").read_bytes().splitlines()[0])
    assert (done.stdout, first.feedback.share) == ("3 prompts\n", 0.25)


def test_submit_writes_several_tasks_in_turn(asyncflow, tmp_path):
    data, out = write_data(tmp_path), tmp_path / "prompts.jsonl"
    done = asyncflow("submit", "glue", "--data", data, "--args", "tasks=sst2,rte", "--limit", 3, "--out", out)
    assert (done.returncode, done.stdout) == (0, "3 prompts\n"), done.stderr
    assert [Prompt.decode(line).task for line in out.read_bytes().splitlines()] == ["sst2", "rte", "sst2"]


def test_submit_tells_tasks_and_files_apart(asyncflow, tmp_path):
    out = ("--out", tmp_path / "out.jsonl")
    assert refused(asyncflow("submit", "support", *out), "support is a task", "--data DIR")
    assert refused(asyncflow("submit", "supp", "--data", tmp_path, *out), "did you mean support?")
    assert refused(asyncflow("submit", tmp_path / "none.jsonl", *out), "none.jsonl: No such file")
    (tmp_path / "file.jsonl").write_text("{}\n")
    assert refused(asyncflow("submit", tmp_path / "file.jsonl", "--limit", 3, *out), "--limit is for tasks")


def test_simulate_raters_wants_data_and_a_run(asyncflow, tmp_path):
    assert refused(asyncflow("simulate-raters", "translation", "--run", "x"), "--data DIR is missing")
    data = write_data(tmp_path)
    assert refused(asyncflow("simulate-raters", "translat", "--data", data, "--run", "x"), "did you mean translation?")
    assert refused(asyncflow("simulate-raters", "translation", "--data", data), "exactly one of --run and --config")


def test_debug_shows_the_traceback_too(tmp_path):
    done = in_process_of_its_own("learn", "--config", tmp_path / "none.toml", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_ctrl_c_of_a_single_process_is_130(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn, "main", interrupted)
    assert main(["learn"]) == 130


def test_a_fault_that_is_not_the_users_is_1_and_names_its_kind(monkeypatch, capsys):
    def fail(_):
        raise StateError("the checkpoint is torn")

    monkeypatch.setattr(learn, "main", fail)
    assert main(["learn"]) == 1
    assert capsys.readouterr().err == "asyncflow learn: StateError: the checkpoint is torn\n"


def test_a_full_disk_is_told(monkeypatch, capsys):
    def fail(_):
        raise OSError(28, "No space left on device", "/runs/x")

    monkeypatch.setattr(learn, "main", fail)
    assert main(["learn"]) == 2
    assert "No space left on device: /runs/x; make room" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. X")]
)
def test_memory_that_does_not_suffice_is_told(monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr(learn, "main", fail)
    assert main(["learn"]) == 2
    assert "out of memory: model, activations and engine do not fit; lower learner.micro" in capsys.readouterr().err


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(learn, "main", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["learn"])


def test_output_that_nobody_reads_is_no_error():
    command = f"{sys.executable} -m pipelines.cli.main up --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('name = "filed"\n[learner]\nsteps = 3\nmax_staleness = 2\n[kafka.client]\nclient_id = "x"\n')
    config = parse_process("learn", ["--config", str(file), "--learner.steps", "5"], "")
    assert (config.name, config.learner.steps, config.learner.max_staleness) == ("filed", 5, 2)
    assert config.kafka.client == {"client_id": "x"}


def test_a_preset_lies_below_the_file_and_the_file_below_flags(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[learner]\nsteps = 3\nmax_staleness = 2\n")
    arguments = ["--preset", "demo", "--config", str(file), "--learner.steps", "5", "--runner=X"]
    options, rest = parse_start_and_rest("rollout", arguments, "")
    config = options.run
    assert (config.learner.steps, config.learner.max_staleness, config.rollout.sampling.max_tokens) == (5, 2, 12)
    assert rest == ["--runner=X"]


def test_flags_may_be_written_with_either_dash():
    for flag in ("--learner.max-staleness", "--learner.max_staleness"):
        assert parse_process("learn", [flag, "3"], "").learner.max_staleness == 3


def test_rollout_passes_beams_flags_on_and_keeps_its_own():
    options, rest = parse_start_and_rest(
        "rollout", ["--runner=FlinkRunner", "--rollout.shares", "2", "--flink_master", "127.0.0.1:8081"], ""
    )
    assert options.run.rollout.shares == 2
    assert rest == ["--runner=FlinkRunner", "--flink_master", "127.0.0.1:8081"]


@pytest.mark.parametrize(("flag", "hint"), [("--rollout.share", "--rollout.shares"), ("--confg", "--config")])
def test_rollout_does_not_pass_on_what_looks_like_a_misspelt_flag_of_ours(flag, hint):
    with pytest.raises(ConfigError, match=f"unknown flag {flag}; did you mean {hint}"):
        parse_start_and_rest("rollout", [flag, "2"], "")


def test_peek_finds_both_forms():
    assert peek(["--config", "a"], "--config") == peek(["x", "--config=a"], "--config") == "a"
    assert peek(["--configs", "a"], "--config") is None
    assert peek(["--config"], "--config") is None


def test_lines_are_read_as_they_are_and_blank_ones_left_out(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"a": 1}\r\n\n   \nnot json \xff\n{"b": 2}')
    assert list(read_lines(file)) == [b'{"a": 1}', b"not json \xff", b'{"b": 2}']


def test_a_line_that_the_topic_does_not_take_is_named(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"x\n" + b"y" * (16 << 20))
    with pytest.raises(ConfigError, match="line 2: 16777216 bytes"):
        list(read_lines(file))


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("line", "key"),
    [
        (json.dumps({"prompt_id": "gsm8k/17"}), b"gsm8k/17"),
        (json.dumps({"prompt_id": 17}), None),
        (json.dumps({}), None),
        (json.dumps(["prompt_id"]), None),
        ("not json", None),
        ("[" * 100_000, None),
        ('{"prompt_id": "\\ud800"}', b"?"),
    ],
)
def test_the_key_is_the_prompts_id_where_there_is_one(line, key):
    assert key_of(line.encode()) == key


def test_submit_writes_every_line_over_the_partitions_in_turn(run_config, tmp_path):
    from tests.integration.test_broker import _consume

    file = tmp_path / "prompts.jsonl"
    lines = [b'{"prompt_id": "%d"}' % index for index in range(4)] + [b"not json"]
    file.write_bytes(b"\n".join(lines))
    assert not has_prompts(run_config)
    done = in_process_of_its_own(
        "submit", file, "--run", run_config.name, "--bootstrap", run_config.kafka.bootstrap, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "5 prompts\n"), done.stderr
    assert _consume(run_config, run_config.topics.prompts) == lines[::2]
    assert has_prompts(run_config)


def test_submit_to_a_run_without_topics_is_told(asyncflow, broker, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("{}\n")
    done = asyncflow("submit", file, "--run", "nobody", "--bootstrap", broker, cwd=tmp_path)
    assert refused(done, f"Kafka at {broker} has no topic nobody.prompts")


def test_kafka_serves_the_log_of_a_run_again_until_ctrl_c(tmp_path):
    from pipelines.local.broker import Broker
    from pipelines.local.topics import create_topics
    from schemas.config import KafkaConfig
    from tests.integration.test_broker import _consume, _produce

    run = tmp_path / "runs" / "old"
    with Broker(run / "kafka") as first:
        config = RunConfig(name="old", kafka=KafkaConfig(bootstrap=first.bootstrap))
        create_topics(config)
        _produce(config, [b"kept"], config.topics.prompts)
    (run / "config.toml").write_text(f'name = "old"\n[kafka]\nbootstrap = "{first.bootstrap}"\n')

    serving = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", "kafka", "runs/old"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        word, bootstrap = serving.stdout.readline().split()
        assert word == "kafka"
        again = RunConfig(name="old", kafka=KafkaConfig(bootstrap=bootstrap))
        assert _consume(again, again.topics.prompts) == [b"kept"]
        assert refused(in_process_of_its_own("kafka", "old", cwd=tmp_path), "run 'old' is in use by another process")
    finally:
        os.kill(serving.pid, signal.SIGINT)
    assert serving.wait(60) == 0
    assert not list(run.glob("pids.*"))
