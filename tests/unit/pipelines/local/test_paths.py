"""The cache: built whole or not at all, by one process at a time."""

import threading
import time

import pytest

from pipelines.local.paths import build_once, cache_dir, make_directory
from schemas.errors import DiskError


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "asyncflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "asyncflow"
    assert cache_dir().is_dir()


def test_what_is_there_is_not_built_again(tmp_path):
    calls = []

    def build(target):
        calls.append(target)
        target.write_text("built")

    assert [build_once(tmp_path / "a" / "thing", build).read_text() for _ in range(2)] == ["built", "built"]
    assert len(calls) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(target):
        target.write_text("half")
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        build_once(tmp_path / "thing", build)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]


def test_two_at_once_build_once(tmp_path):
    calls = []

    def build(target):
        calls.append(target)
        time.sleep(0.2)
        target.mkdir()

    threads = [threading.Thread(target=build_once, args=(tmp_path / "thing", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot create .*file/below: Not a directory"):
        make_directory(tmp_path / "file" / "below")
