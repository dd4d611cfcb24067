"""Prism is found by the first way that works."""

import sys

import pytest

from pipelines.local import prism
from schemas.errors import ConfigError, UserError


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(prism.VARIABLE, raising=False)


def binary(room):
    (room / "built").write_text("#!/bin/sh\necho prism\n")
    return room / "built"


def impossible(room):
    (room / "rubbish").mkdir()
    raise prism._NotPossible("no network")


def just_as_impossible(room):
    raise prism._NotPossible("no compiler")


def test_the_first_way_that_works_fills_the_cache_and_nothing_else_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(prism, "_WAYS", {"download": impossible, "build": binary})
    found = prism.find_prism()
    assert found.parent == tmp_path / "cache" / "asyncflow"
    assert found.stat().st_mode & 0o111
    assert sorted(path.name for path in found.parent.iterdir()) == [f".{found.name}.lock", found.name]
    monkeypatch.setattr(prism, "_WAYS", {})
    assert prism.find_prism() == found


def test_when_nothing_works_every_reason_is_told(monkeypatch):
    monkeypatch.setattr(prism, "_WAYS", {"download": impossible, "build": just_as_impossible})
    with pytest.raises(UserError) as raised:
        prism.find_prism()
    assert "download: no network\n  build: no compiler" in str(raised.value)
    assert prism.VARIABLE in str(raised.value)


def test_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(prism.VARIABLE, sys.executable)
    assert str(prism.find_prism()) == sys.executable
    monkeypatch.setenv(prism.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="not an executable file"):
        prism.find_prism()


def test_without_go_on_the_path_the_way_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(prism._NotPossible, match="no go on the PATH"):
        prism._build_with_go_of_path(tmp_path)


def test_a_command_that_fails_gives_its_last_line_and_one_that_hangs_its_time(tmp_path):
    with pytest.raises(prism._NotPossible, match=r"^it is closed$"):
        prism._run([sys.executable, "-c", "import sys; sys.exit('first\\nit is closed')"], 10, {})
    with pytest.raises(prism._NotPossible, match="timed out"):
        prism._run([sys.executable, "-c", "import time; time.sleep(9)"], 0.2, {})
    assert prism._run([sys.executable, "-c", "import os; print(os.environ['GOBIN'])"], 10, {"GOBIN": "x"}) == "x\n"
