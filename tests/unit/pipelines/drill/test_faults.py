"""The catalogue of faults, and the instruments that they use."""

import json
import urllib.request
from pathlib import Path

import pytest

from pipelines.drill.disks import SmallDisk
from pipelines.drill.faults import CRASHES, FAULTS
from pipelines.drill.rogue import _KINDS, UNANNOUNCED, Rogue
from pipelines.drill.run import choose
from pipelines.drill.scene import torn
from pipelines.local.ports import free_ports
from schemas.crash_points import LEARNER_POINTS, PIPELINE_POINTS
from schemas.errors import ConfigError, EngineError
from schemas.manifests import MANIFEST_NAME, Manifest, describe
from transforms.generation.engine import read_completions

ROOT = Path(__file__).parents[4]


def test_every_crash_point_is_a_fault_and_stands_in_the_code_once():
    assert len(CRASHES) == len(LEARNER_POINTS) + len(PIPELINE_POINTS)
    code = "".join(path.read_text() for part in ("trainers", "transforms") for path in (ROOT / part).rglob("*.py"))
    for point in (*LEARNER_POINTS, *PIPELINE_POINTS):
        assert code.count(f'crash_point("{point}")') == 1, point


def test_faults_are_chosen_by_name_or_by_set():
    assert list(choose(["kill learner"])) == ["kill learner"]
    assert choose(["every"]).keys() == {*FAULTS, *CRASHES}
    with pytest.raises(ConfigError, match="no fault 'kill lerner'"):
        choose(["kill lerner"])


@pytest.mark.parametrize("kind", _KINDS)
def test_rubbish_is_refused_where_it_is_read_or_names_an_unknown_version(kind):
    body = _KINDS[kind](4)
    try:
        completions = read_completions("http://rogue", body, 4, 100)
    except EngineError:
        return
    assert kind in ("a version that was never announced", "spans out of order", "no number")
    versions = {span.version for completion in completions for span in completion.spans}
    assert UNANNOUNCED in versions or kind == "spans out of order"


def test_the_rogue_answers_while_it_is_on():
    rogue = Rogue(free_ports(1)[0])
    rogue.switch_on()
    try:
        body = json.dumps({"sampling_params": {"n": 2}}).encode()
        with urllib.request.urlopen(f"{rogue.url}/inference/v1/generate", body) as answer:
            assert answer.read() == b"<html>502 Bad Gateway</html>"
    finally:
        rogue.switch_off()
    assert rogue.served == {"no JSON": 1}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{rogue.url}/health")


def test_a_small_disk_is_full_when_it_is_filled(tmp_path):
    with SmallDisk(tmp_path / "disk") as disk:
        if not disk.is_small:
            pytest.skip("mounting a tmpfs is not allowed here")
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            (disk.directory / "file").write_bytes(b"x" * 8192)
        disk.empty()
        (disk.directory / "file").write_bytes(b"x" * 8192)


def test_what_says_that_it_is_whole_and_is_not_is_torn(tmp_path):
    from fsspec.implementations.local import LocalFileSystem

    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_bytes(b"weights")
    for name in ("1", "2"):
        manifest = Manifest(files=(describe(LocalFileSystem(), str(tmp_path / name), "model"),))
        (tmp_path / name / MANIFEST_NAME).write_bytes(manifest.encode())
    assert torn(tmp_path, set()) == []
    (tmp_path / "2" / "model").write_bytes(b"weightz")
    (tmp_path / "1" / MANIFEST_NAME).write_bytes(b'{"files": [')
    assert len(torn(tmp_path, set())) == 2
    assert len(torn(tmp_path, {tmp_path / "2"})) == 1
