"""The verb ``federate`` before it reaches a broker."""

import json

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
