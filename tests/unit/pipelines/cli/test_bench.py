"""``asyncflow bench`` finds the benchmarks of the checkout and becomes the one that is named."""

import os
import sys

import pytest

from pipelines.cli import bench
from schemas.errors import ConfigError, RunError


@pytest.fixture
def became(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def test_without_a_name_it_lists_programs_with_what_they_say_of_themselves(capsys, tmp_path, monkeypatch):
    (tmp_path / "speed.py").write_text('"""How fast. And more."""\nif __name__ == "__main__":\n    pass\n')
    (tmp_path / "settings.py").write_text('"""No program."""\n')
    monkeypatch.setattr(bench, "_BENCHMARKS", tmp_path)
    assert bench.main([]) == 0
    assert capsys.readouterr().out.split(maxsplit=1) == ["speed", "How fast\n"]


def test_what_follows_the_name_is_the_benchmark_s_own(became):
    bench.main(["weights", "--help", "--versions", "3"])
    ((program, command, environment),) = became
    assert program == sys.executable
    assert command[1:] == ["-m", "tests.benchmarks.weights", "--help", "--versions", "3"]
    assert str(bench._ROOT) in environment["PYTHONPATH"].split(os.pathsep)


def test_an_unknown_name_and_an_installation_without_benchmarks_are_told(became, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"no benchmark 'weight'; did you mean weights\?"):
        bench.main(["weight"])
    monkeypatch.setattr(bench, "_BENCHMARKS", tmp_path / "none")
    with pytest.raises(RunError, match="clone it"):
        bench.main(["weights"])
    assert not became
