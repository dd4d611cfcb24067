"""The verb ``federate`` before it reaches a broker."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.cli.main import main


@pytest.fixture
def file(tmp_path):
    save_file({"w": np.zeros((3, 4), dtype=np.float32)}, tmp_path / "model.safetensors")
    path = tmp_path / "federation.toml"
    path.write_text(
        f'name = "hospitals"\nmodel = "{tmp_path}"\nstore = "{tmp_path / "store"}"\n'
        '[kafka]\nbootstrap = "127.0.0.1:1"\n'
        '[sites.north]\nkey = "{env:NORTH_KEY}"\n[sites.south]\nkey = "{env:SOUTH_KEY}"\nprincipal = "User:CN=south"\n'
    )
    return str(path)


def test_without_a_file_it_says_so(capsys):
    assert main(["federate"]) == 2
    assert "--config FILE is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--strategy.name", "fedavgg"], "did you mean fedavg?"),
        (["--strategy.modules", "no_such_module"], "strategy.modules names no_such_module"),
        (["--privacy.clip-norm", "1", "--privacy.noise-multiplier", "1", "--strategy.weigh-by", "equal",
          "--strategy.name", "median"], "take fedavg, fedavgm"),
        (["--asynchronous", "--strategy.name", "fedasync"], "keep = 3 has to be above max_staleness = 20"),
        (["--quorun", "2"], "did you mean --quorum?"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_is_reached(file, flags, said, capsys):
    assert main(["federate", "--config", file, *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_rehearsal_tells_what_is_wrong(file, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NORTH_KEY", "secret")
    assert main(["federate", "--config", file, "--dry-run"]) == 2
    told = capsys.readouterr().out
    assert "12 numbers" in told
    assert "site north: signs its updates" in told
    assert "the environment variable SOUTH_KEY is not set" in told
    assert "nobody listens there" in told
    assert not (tmp_path / "store").exists()


@pytest.fixture
def _empty_broker(monkeypatch):
    """One that has no topics yet: whom nobody answers is waited for, for seconds."""
    monkeypatch.setattr("pipelines.federation.rehearse.inspect_topics", lambda config: {})


def rehearsed(file, capsys, *flags):
    main(["federate", "--config", file, "--dry-run", *flags])
    return capsys.readouterr().out


@pytest.mark.usefixtures("_empty_broker")
def test_a_rehearsal_counts_whatever_lies_in_the_spool(file, capsys):
    assert "(2 updates) × 12 numbers" in rehearsed(file, capsys)
    asynchronous = ["--asynchronous", "--buffer", "2", "--keep", "9", "--max-staleness", "8"]
    told = rehearsed(file, capsys, *asynchronous, "--strategy.name", "fedasync")
    assert "(2 updates + 9 versions they start from) × 12 numbers" in told
    noise = ["--privacy.clip-norm", "1", "--privacy.noise-multiplier", "1", "--strategy.weigh-by", "equal"]
    assert "(2 updates + 1 of noise) × 12 numbers" in rehearsed(file, capsys, *noise)


@pytest.mark.usefixtures("_empty_broker")
def test_a_rehearsal_tells_where_the_figures_are(file, capsys):
    assert "metrics_port 0: no figures" in rehearsed(file, capsys)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
        listener.listen()
        assert f"127.0.0.1:{port} is taken" in rehearsed(file, capsys, "--metrics-port", port)
    assert f"http://127.0.0.1:{port}/metrics" in rehearsed(file, capsys, "--metrics-port", port)


@pytest.fixture
def open_to_all(file):
    """The same without sites."""
    path = Path(file)
    path.write_text(path.read_text().split("[sites.")[0])
    return file


@pytest.mark.usefixtures("_empty_broker")
def test_a_rehearsal_does_not_know_how_many_come_where_nobody_is_named(open_to_all, capsys):
    told = rehearsed(open_to_all, capsys, "--quorum", "3")
    assert "(3 updates) × 12 numbers" in told
    assert "there may be more updates in a round than its quorum" in told


def test_rights_of_nobody_are_told(open_to_all, capsys):
    assert main(["federate", "--config", open_to_all, "--acls", "json"]) == 0
    assert "no site has any rights here" in capsys.readouterr().err


def test_rights_are_those_of_each_site_and_of_nobody_else(file, capsys):
    assert main(["federate", "--config", file, "--acls", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"User:hospitals-coordinator", "User:hospitals-north", "User:CN=south",
                         "User:hospitals-follower", "User:hospitals-observer"}  # fmt: skip
    writes = [acl["resource"]["name"] for acl in told["User:CN=south"]["acls"] if "Write" in acl["operations"]]
    assert writes == ["hospitals.sites", "hospitals.updates"]
    assert main(["federate", "--config", file, "--acls", "commands"]) == 0
    assert "--allow-principal User:CN=south --operation Read --operation Describe --topic hospitals.rounds" in (
        capsys.readouterr().out
    )
