"""A user's own code, named as a file."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.errors import ConfigError
from transforms.modules import absolute, is_file, load_module
from transforms.rewards import registry


def write(file, code):
    file.write_text(code)
    return str(file)


def test_a_file_is_run_once_and_hides_no_module_of_its_name(tmp_path):
    import math

    file = write(tmp_path / "math.py", "import math as theirs\nrun = []\nrun.append(theirs.pi)\n")
    first = load_module(file, "x")
    assert load_module(file, "x") is first
    assert first.run == [math.pi]
    assert sys.modules["math"] is math
    (tmp_path / "other").mkdir()
    assert load_module(write(tmp_path / "other" / "math.py", "run = 2\n"), "x").run == 2


def test_a_relative_file_is_the_same_from_elsewhere(tmp_path, monkeypatch):
    write(tmp_path / "mine.py", "")
    monkeypatch.chdir(tmp_path)
    here = load_module("mine.py", "x")
    whole = absolute("mine.py")
    monkeypatch.chdir("/")
    assert load_module(whole, "x") is here
    assert absolute("my.package") == "my.package"
    assert not is_file("my.package")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\nraise ValueError('no')\n", r"cannot be imported: ValueError: no \(mine\.py, line 2\)"),
        ("def f(:\n", r"SyntaxError: .*line 1"),
        ("import nothing_like_this\n", "No module named 'nothing_like_this'"),
        ("open('missing.json')\n", r"FileNotFoundError: .*'missing\.json' \(mine\.py, line 1\)"),
        ("raise SystemExit(0)\n", "a program that ends Python"),
        (None, r"mine\.py is no file; give an existing file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line_and_it_can_be_mended(tmp_path, code, told):
    file = tmp_path / "mine.py"
    if code is not None:
        file.write_text(code)
    with pytest.raises(ConfigError, match=f"rewards.modules names .*{told}"):
        registry.load([str(file)])
    file.write_text("fine = True\n")
    assert load_module(str(file), "x").fine


def test_a_file_is_one_module_however_it_is_named_and_its_classes_can_be_pickled(tmp_path):
    (tmp_path / "sub").mkdir()
    first = load_module(write(tmp_path / "my.rewards-2.py", "class Thing:\n    pass\n"), "x")
    assert load_module(str(tmp_path / "sub" / ".." / "my.rewards-2.py"), "x") is first
    assert isinstance(pickle.loads(pickle.dumps(first.Thing())), first.Thing)


def test_a_thread_never_sees_half_a_module(tmp_path):
    file = write(tmp_path / "slow.py", "import time\ntime.sleep(0.1)\ndone = True\n")
    with ThreadPoolExecutor(4) as threads:
        assert all(module.done for module in threads.map(lambda _: load_module(file, "x"), range(4)))


def test_two_files_cannot_have_one_reward(tmp_path):
    code = (
        "from transforms.rewards.registry import Arguments, Reward, reward\n"
        "@reward('of_two_files')\ndef f(sample, arguments: Arguments):\n    return Reward(1.0)\n"
    )
    files = [write(tmp_path / name, code) for name in ("one.py", "two.py")]
    with pytest.raises(ConfigError, match="reward 'of_two_files' is registered twice; give two_"):
        registry.load(files)
