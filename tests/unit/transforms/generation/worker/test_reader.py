"""Versions are read in another process, which says the same as this one would, and ends with it."""

import json
import os
import signal

import psutil
import pytest
import torch
from safetensors.torch import save_file

from schemas.errors import RecordError, StateError
from tests.support.weights import write_version
from transforms.generation.worker.lifeline import SERVER_VARIABLE
from transforms.generation.worker.reader import ReaderProcess
from transforms.generation.worker.verify import read_expectation

PROBE = {"token_ids": [1, 2, 3], "logprobs": [-1.0, -2.0]}


@pytest.fixture
def expectation(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 8}))
    save_file({"w": torch.ones(2)}, model / "model.safetensors")
    return read_expectation(model, 16)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def reader(monkeypatch, root, expectation):
    monkeypatch.setenv(SERVER_VARIABLE, str(os.getpid()))
    with ReaderProcess(str(root), expectation) as reader:
        yield reader


def publish(root, version, value):
    return write_version(str(root), version, {"w": torch.full((2,), value)}, probe=PROBE)


def process(reader):
    """The one that reads."""
    (pid,) = reader._pool._processes
    return psutil.Process(pid)


async def test_what_verifies_comes_back_with_its_files_and_what_does_not_is_refused(reader, root):
    good, bad = publish(root, 1, 1.0), publish(root, 2, float("nan"))
    verified = await reader.read(good)
    assert verified.announced == good
    assert [os.path.basename(file) for file in verified.files] == ["model.safetensors"]
    with pytest.raises(RecordError) as refusal:
        await reader.read(bad)
    assert (refusal.value.reason, refusal.value.detail) == ("nonfinite", "w holds a number that is not finite")


async def test_signals_for_the_whole_group_leave_it_to_the_server_but_its_death_ends_the_worker(reader, root):
    good = publish(root, 1, 1.0)
    await reader.read(good)
    for number in (signal.SIGINT, signal.SIGTERM):
        process(reader).send_signal(number)
    assert (await reader.read(good)).announced == good
    process(reader).kill()
    with pytest.raises(StateError, match="the process that verifies weights died"):
        await reader.read(good)


async def test_nothing_of_it_stays(root, expectation, tmp_path, monkeypatch):
    monkeypatch.setenv(SERVER_VARIABLE, str(os.getpid()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with ReaderProcess(f"simplecache::file://{root}", expectation) as reader:
        await reader.read(publish(root, 1, 1.0))
        child = process(reader)
        assert list(tmp_path.glob("asyncflow-weights-*")), "what is not local is downloaded"
    assert not child.is_running()
    assert not list(tmp_path.glob("asyncflow-weights-*"))
