"""``asyncflow eval``: what its arguments mean, and what a wrong call says."""

import pytest

from pipelines.cli import logs
from pipelines.cli.eval import EvalOptions, _base, _tell, _with_samples
from pipelines.cli.main import main
from pipelines.cli.options import parse
from pipelines.evaluation.report import Report
from pipelines.local.ports import free_ports
from schemas.errors import ConfigError, RunError
from tests.support.tasks import write_data
from transforms.environments import registry as environments
from transforms.rewards.sandbox import launch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def refused(monkeypatch, capsys):
    """Ends with 2 and one message."""
    monkeypatch.setattr(logs, "configure_logging", lambda: None)

    def call(*arguments):
        assert main(["eval", *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    return call


def options(*arguments):
    given = [str(argument) for argument in arguments]
    return parse(EvalOptions, "eval", given, "", EvalOptions(run=_base(given)))


def test_tasks_are_several_and_samples_say_which_passes_are_counted():
    given = options("--tasks", "glue", "gsm8k", "--model", "m", "--samples", 4, "--evaluation.temperature", 0.7)
    assert given.tasks == ("glue", "gsm8k")
    evaluation = _with_samples(given).evaluation
    assert (evaluation.samples, evaluation.pass_at, evaluation.temperature) == (4, (1, 4), 0.7)
    assert _with_samples(options("--tasks", "glue")).evaluation.samples == 0
    assert _with_samples(options("--samples", 1)).evaluation.pass_at == (1,)
    several = options("--samples", 16, "--evaluation.pass-at", 4, 8, 32)
    assert _with_samples(several).evaluation.pass_at == (1, 4, 8, 16)
    with pytest.raises(ConfigError, match="samples"):
        _with_samples(options("--samples", -1))


def test_a_run_gives_its_configuration_and_flags_override_it(tmp_path):
    (tmp_path / "config.toml").write_text('name = "sums"\nseed = 3\n[evaluation]\nmax_tokens = 7\n')
    given = options("--run", tmp_path, "--seed", 5)
    assert (given.of, given.run.name, given.run.seed, given.run.evaluation.max_tokens) == (str(tmp_path), "sums", 5, 7)
    with pytest.raises(RunError, match=r"no run 'nowhere'.*or its configuration with --config"):
        options("--run", "nowhere")
    with pytest.raises(ConfigError, match="exactly one of --run and --config"):
        options("--run", tmp_path, "--config", tmp_path / "config.toml")


def test_who_is_asked_has_to_be_clear(refused, data, tmp_path):
    (tmp_path / "config.toml").write_text('name = "sums"\n')
    tasks = ("--tasks", "rte", "--data", data)
    assert "nothing to ask: give --model DIR, or a run with --run RUN" in refused(*tasks)
    assert "--model and --run" in refused(*tasks, "--model", "m", "--run", tmp_path)
    assert "--version is of a run" in refused(*tasks, "--model", "m", "--version", 3)
    assert "no directory" in refused(*tasks, "--model", "m", "--out", tmp_path / "none" / "out.json")
    assert "a directory; give a file" in refused(*tasks, "--model", "m", "--out", tmp_path)


def test_what_is_asked_is_checked_before_anything_starts(refused, data, tmp_path):
    assert "no such directory" in refused("--tasks", "rte", "--data", data, "--model", tmp_path / "none")
    assert "--data DIR is missing" in refused("--tasks", "rte", "--model", tmp_path)
    assert "did you mean glue" in refused("--tasks", "gleu", "--data", data, "--model", tmp_path)
    held = refused("--tasks", "gsm8k", "--data", data, "--model", tmp_path, "--constrained")
    assert "have no labels that answers could be held to; leave --constrained out" in held


def test_what_cannot_be_scored_is_told_before_anything_starts(refused, data, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_READ", {})
    shop = refused("--tasks", "tau_retail", "--data", data, "--model", tmp_path / "none")
    assert "(tau_retail/held_out/" in shop
    assert "name it as rollout.environments.data.tau_retail" in shop

    def fail(mode):
        raise ConfigError(f"rewards.sandbox {mode!r}: code cannot be tested in isolation here")

    monkeypatch.setattr(launch, "check", fail)
    assert "cannot be tested in isolation" in refused("--tasks", "mbpp", "--data", data, "--model", tmp_path / "none")


def test_what_was_found_is_printed_although_it_cannot_be_written(tmp_path, capsys):
    given = options("--tasks", "rte", "--model", "m", "--out", tmp_path / "gone" / "eval.json", "--json")
    report = Report(
        model="m", run=None, version=None, version_max=None, dtype="float32", split="held_out", limit=None, seed=0,
        constrained=False, max_tokens=8, prompts_sha256="0" * 64, tasks=(), families=(),
    )  # fmt: skip
    with pytest.raises(FileNotFoundError):
        _tell(report, given)
    assert Report.model_validate_json(capsys.readouterr().out) == report


def test_a_run_that_does_not_run_is_told(refused, data, tmp_path):
    port = free_ports(1)[0]
    (tmp_path / "config.toml").write_text(
        f'name = "sums"\n[rollout]\nworkers = ["http://127.0.0.1:{port}"]\ndiscover = false\n'
    )
    assert "no worker of run 'sums' answers" in refused("--tasks", "rte", "--data", data, "--run", tmp_path)
    wrong = refused("--tasks", "rte", "--data", data, "--run", tmp_path, "--version", "last",
                    "--kafka.bootstrap", f"127.0.0.1:{port}")  # fmt: skip
    assert "--version 'last': expected newest, best or the number of a weight version" in wrong
