"""Files of the user travel in the pipeline to machines that have none of them."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from schemas.config import validate
from transforms import carried as carried_module
from transforms.carried import NOTHING, Carried


def settings(*modules, games=()):
    return validate({"rewards": {"modules": modules}, "rollout": {"environments": {"modules": games}}}, "of the test")


def test_a_file_that_is_still_there_is_taken_where_it_is(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    config = settings("transforms.rewards.length", str(file))
    assert Carried.of(config).here(config) == config


def test_a_relative_name_becomes_one_that_any_process_finds(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    config = settings("mine.py")
    assert Carried.of(config).here(config).rewards.modules == (str(tmp_path / "mine.py"),)


def test_a_file_that_is_gone_or_another_is_what_it_was(tmp_path):
    files = [tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"]
    for file in files:
        file.parent.mkdir()
        file.write_text(f"x = {file.parent.name!r}\n")
    config = settings(str(files[0]), games=(str(files[1]),))
    carried = pickle.loads(pickle.dumps(Carried.of(config)))
    files[0].unlink()
    files[1].write_text("x = 'new'\n")
    for here in (carried.here(config), carried.here(config)):
        (first,), (second,) = here.rewards.modules, here.rollout.environments.modules
        assert first != second
        assert [Path(each).read_text() for each in (first, second)] == ["x = 'a'\n", "x = 'b'\n"]
        assert first.endswith("/mine.py"), "messages name it as its owner does"
    assert carried.here(config) == carried.here(config), "one pool, however often it is asked for"


def test_shares_that_are_built_at_once_find_the_same_file(tmp_path):
    file, count = tmp_path / "mine.py", 8
    for turn in range(20):
        file.write_text(f"x = {turn}\n")
        carried = Carried.of(settings(str(file)))
        file.unlink()
        carried_module._directory.cache_clear()
        ready = Barrier(count)

        def place(carried=carried, ready=ready):
            ready.wait(60)
            return carried.here(settings(str(file))).rewards.modules

        with ThreadPoolExecutor(count) as threads:
            found = [each.result(60) for each in [threads.submit(place) for _ in range(count)]]
        assert len(set(found)) == 1
        assert Path(found[0][0]).read_text() == f"x = {turn}\n"


def test_nothing_is_changed_where_nothing_is_carried():
    config = settings("transforms.rewards.length", "no_such_file.py")
    assert Carried.of(config) == NOTHING
    assert NOTHING.here(config) is config
