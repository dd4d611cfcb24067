"""A private copy of a learner's buffer: checked before anything is loaded from it."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from schemas.digests import digests
from schemas.snapshots import LAYOUT_NAME, SOURCE_NAME, lay_out, views
from schemas.weights import version_path
from tests.support.snapshot_learner import tensors_of
from transforms.generation.worker import staging as module
from transforms.generation.worker.staging import Staging

TENSORS = {"a": torch.arange(6.0).bfloat16(), "b": torch.ones(2, 3)}
SOURCE = {"kind": "nccl", "version": 1, "host": "127.0.0.1", "port": 1, "timeout_s": 1.0}
MEMORY = {"kind": "ipc", "gpu": "ab-12", "handle": "00", "size": 64, "offset": 0, "counter": "/torch_1_2_3",
          "counter_offset": 0, "event": "00", "event_sync": True}  # fmt: skip


def filled(tensors):
    layout = lay_out(tensors)
    buffer = torch.zeros(layout.size, dtype=torch.uint8)
    for name, place in views(buffer, layout).items():
        place.copy_(tensors[name])
    return buffer, layout.model_copy(update={"digests": digests(buffer)})


class Learner:
    """Hands its buffer over as it is at that moment."""

    def __init__(self, monkeypatch) -> None:
        self.buffer, self.layout = filled(TENSORS)
        monkeypatch.setattr(module.Receiver, "receive", lambda _, __, ___, target: target.copy_(self.buffer))


@pytest.fixture
def learner(monkeypatch):
    return Learner(monkeypatch)


@pytest.fixture
def staging():
    return Staging(torch.device("cpu"))


def stage(staging, layout, source=SOURCE):
    staging.begin(json.dumps(source), layout if isinstance(layout, str) else layout.model_dump_json())
    deadline = time.monotonic() + 60
    while (outcome := staging.outcome()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return outcome


def test_a_copy_that_has_its_digests_is_ready_whatever_happens_to_the_buffer_then(learner, staging):
    assert stage(staging, learner.layout) == ""
    learner.buffer.zero_()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in staging.tensors().items())


def test_a_buffer_that_was_written_over_is_refused(learner, staging):
    learner.buffer[3] ^= 1
    assert stage(staging, learner.layout).startswith("bad_files: blocks [0] of 1")
    with pytest.raises(RuntimeError, match="no version is staged"):
        staging.tensors()
    learner.buffer[3] ^= 1
    assert stage(staging, learner.layout) == "", "the next one is taken"


def test_a_refused_version_does_not_leave_the_last_one_ready(learner, staging):
    assert stage(staging, learner.layout) == ""
    assert stage(staging, "{}").startswith("bad_tensors: ")
    with pytest.raises(RuntimeError, match="no version is staged"):
        staging.tensors()


def test_numbers_that_are_not_finite_are_refused(learner, staging):
    learner.buffer, learner.layout = filled({**TENSORS, "b": torch.tensor([1.0, torch.nan])})
    assert stage(staging, learner.layout) == "nonfinite: b holds a number that is not finite"


def test_sums_that_overflow_and_dtypes_that_alternate_are_no_reason_to_refuse(learner, staging):
    large = torch.full((4,), 3e38)
    learner.buffer, learner.layout = filled({"a": large, "b": torch.ones(3).bfloat16(), "c": large, "d": large})
    assert stage(staging, learner.layout) == ""


def test_finite_numbers_are_not_looked_at_tensor_by_tensor(learner, staging, monkeypatch):
    looked = []
    monkeypatch.setattr(module, "first_nonfinite", looked.append)
    assert stage(staging, learner.layout) == ""
    assert not looked


def test_an_outcome_can_be_waited_for(learner, staging, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(module.Receiver, "receive", lambda *_: go.wait(60))
    staging.begin(json.dumps(SOURCE), learner.layout.model_dump_json())
    assert staging.outcome(0.01) is None
    go.set()
    assert staging.outcome(20) is not None


def test_a_closed_version_is_not_loaded_twice(learner, staging):
    stage(staging, learner.layout)
    staging.close()
    with pytest.raises(RuntimeError, match="no version is staged"):
        staging.tensors()


def test_memory_of_another_gpu_is_not_mapped(staging):
    _, layout = filled(TENSORS)
    outcome = stage(staging, layout, MEMORY)
    assert outcome == "unreadable: the weights are in the memory of GPU ab-12, the engine is on cpu"


def test_what_cannot_be_received_is_refused(staging):
    _, layout = filled(TENSORS)
    entry = {"name": "a", "size": 1, "sha256": "0" * 64}
    delta = {"kind": "delta", "base": 1, "base_manifest_sha256": "0" * 64, "files": [entry]}
    assert stage(staging, layout, delta).startswith("bad_source: delta")
    assert stage(staging, layout, {"kind": "pickle"}).startswith("bad_source: ")


@pytest.mark.parametrize("fault", [RuntimeError("CUDA error: out of memory"), OSError("gone")])
def test_a_fault_of_the_device_is_a_refusal(staging, monkeypatch, fault):
    def fail(*_):
        raise fault

    monkeypatch.setattr(module.Receiver, "receive", fail)
    _, layout = filled(TENSORS)
    assert stage(staging, layout) == f"unreadable: {fault}"


# ------------------------------------------------- from another process


class LearnerProcess:
    """Publishes on request, and may die."""

    def __init__(self, root, transport, device, megabytes=1) -> None:
        self._root, self._device, self._megabytes = root, device, megabytes
        command = [sys.executable, "-m", "tests.support.snapshot_learner", str(root), transport, device, str(megabytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def publish(self, version):
        """Returns the texts of source and layout."""
        self.process.stdin.write(f"{version}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()
        directory = Path(version_path(str(self._root), version))
        return json.loads((directory / SOURCE_NAME).read_text()), (directory / LAYOUT_NAME).read_text()

    def made(self, staging, version):
        expected = tensors_of(version, self._device, self._megabytes)
        return all(torch.equal(tensor.cpu(), expected[name].cpu()) for name, tensor in staging.tensors().items())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")


@pytest.mark.parametrize(
    ("transport", "learner", "engine"),
    [
        ("nccl", "cpu", "cpu"),
        pytest.param("ipc", "cuda", "cuda", marks=CUDA),
        pytest.param("nccl", "cuda:0", "cuda:1", marks=TWO_GPUS),
    ],
)
def test_a_learner_in_another_process_is_followed_until_it_dies(tmp_path, transport, learner, engine):
    staging = Staging(torch.device(engine, 0) if engine == "cuda" else torch.device(engine))
    with LearnerProcess(tmp_path, transport, learner) as process:
        for version in (1, 2, 3):
            source, layout = process.publish(version)
            assert stage(staging, layout, source) == ""
            assert process.made(staging, version)
        old_source, old_layout = source, layout
        for version in (4, 5):
            process.publish(version)
        assert stage(staging, old_layout, old_source).startswith(("bad_files: ", "vanished: ")), "written over"
        source, layout = process.publish(6)
    assert stage(staging, layout, source).startswith("unreadable: "), "the learner is gone"


FILES = ({"a": torch.arange(40.0).bfloat16(), "b": torch.ones(2, 3)}, {"c": torch.arange(5.0), "d": torch.tensor(2.0)})


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_COPY_BYTES", 24)
    for number, tensors in enumerate(FILES):
        save_file(tensors, tmp_path / f"{number}.safetensors", metadata={"format": "pt"})
    return [str(tmp_path / f"{number}.safetensors") for number in range(len(FILES))]


def stage_files(staging, files):
    staging.begin_files(files)
    outcome = staging.outcome(20)
    assert outcome is not None
    return outcome


def test_files_are_staged_as_they_are(staging, files):
    assert stage_files(staging, files) == ""
    first, form = staging.tensors(), staging.form
    expected = {name: tensor for tensors in FILES for name, tensor in tensors.items()}
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in expected.items())
    staging.close()
    assert not staging.is_ready
    assert stage_files(staging, files) == ""
    assert staging.form == form, "the next version lies in the same places"


def test_files_that_vanish_or_are_cut_are_refused(staging, files):
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:-1])
    assert stage_files(staging, files).startswith(f"vanished: {files[1]}: ")
    Path(files[0]).unlink()
    assert stage_files(staging, files).startswith("vanished: ")
    assert not staging.is_ready


def test_without_room_for_a_copy_nothing_is_staged_and_nothing_refused(staging, files, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Staging, "_room", full)
    assert stage_files(staging, files) == ""
    assert not staging.is_ready
