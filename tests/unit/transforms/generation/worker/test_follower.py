"""Which announcements are loaded, in which order, and what a refusal leaves behind."""

import asyncio
import json
import shutil
from dataclasses import replace

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from structlog.testing import capture_logs

from schemas import traces
from schemas.errors import RecordError, StateError
from schemas.weights import version_path
from tests.support.spans import tracing
from tests.support.weights import write_snapshot, write_version
from transforms.generation.worker.engine import Loading
from transforms.generation.worker.follower import Follower
from transforms.generation.worker.reader import Reader
from transforms.generation.worker.state import Metrics, WorkerState
from transforms.generation.worker.store import WeightStore
from transforms.generation.worker.verify import read_expectation

PROBE = {"token_ids": [1, 2, 3], "logprobs": [-1.0, -2.0]}
TENSORS = {"w": torch.ones(2)}


class RecordingEngine:
    """Writes down what it was told and answers the probe with ``logprobs``."""

    def __init__(self, logprobs=(-1.0, -2.0)) -> None:
        self.calls: list[tuple[str, object]] = []
        self.logprobs = list(logprobs)
        self.later: list[list[float]] = []
        """What it answers when it is asked again; without any the same as before."""
        self.opens = True

    async def open_files(self, files) -> None:
        self.calls.append(("open", tuple(files)))
        if not self.opens:
            raise RecordError("vanished", "gone")

    async def open_snapshot(self, source, layout) -> None:
        self.calls.append(("snapshot", (source, layout)))
        if not self.opens:
            raise RecordError("bad_files", "written over")

    async def load(self, version, probe_token_ids) -> Loading:
        self.calls.append(("load", version))
        return Loading(0.1, 0.05, 0.01, self.logprobs)

    async def prompt_logprobs(self, token_ids) -> list[float]:
        self.calls.append(("probe", tuple(token_ids)))
        return self.later.pop(0) if self.later else self.logprobs

    @property
    def loaded(self) -> list[object]:
        return [value for name, value in self.calls if name == "load"]


class ListedSource:
    """Hands out batches of announcements: the newest of each, as the topic's reader does."""

    def __init__(self, *batches) -> None:
        self.batches = list(batches)
        self.drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def newest(self, timeout_s: float):
        if self.batches:
            return self.batches.pop(0)
        self._loop.call_soon_threadsafe(self.drained.set)
        return None


@pytest.fixture
def root(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def engine():
    return RecordingEngine()


@pytest.fixture
def state():
    return WorkerState(Metrics(CollectorRegistry()), 16)


@pytest.fixture
def store(root):
    return WeightStore(str(root))


@pytest.fixture
def follower(tmp_path, store, engine, state):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 8}))
    save_file(TENSORS, model / "model.safetensors")
    reader = Reader(store, read_expectation(model, 16))

    async def read(announced):
        return reader.read(announced)

    return Follower(None, read, engine, state, 1e-3)


async def follow(follower, *batches):
    """Runs the follower until every batch was taken."""
    source = ListedSource(*batches)
    object.__setattr__(follower, "source", source)
    running = asyncio.create_task(follower.run())
    drained = asyncio.create_task(source.drained.wait())
    await asyncio.wait([running, drained], return_when=asyncio.FIRST_COMPLETED, timeout=30)
    drained.cancel()
    if running.done():
        running.result()
    running.cancel()


def refused(state, reason):
    return state.metrics.refused.labels(reason=reason)._value.get()


async def test_versions_are_opened_and_then_loaded_in_order(follower, root, engine, state):
    announced = [write_version(root, version, TENSORS, probe=PROBE) for version in (1, 2)]
    await follow(follower, *announced)
    assert [name for name, _ in engine.calls] == ["open", "load", "open", "load"]
    assert engine.loaded == [1, 2]
    assert (state.version, state.updates, state.refused) == (2, 2, 0)


async def test_a_load_is_a_span_below_the_one_that_published_and_a_refusal_too(follower, root, tmp_path):
    first, bad = (write_version(root, version, TENSORS, probe=PROBE) for version in (1, 2))
    (root / "00000002" / "model.safetensors").write_bytes(b"x")
    with tracing(tmp_path / "traces", "worker") as read:
        published = {each.version: traces.begin(f"step {each.version}", None, "test") for each in (first, bad)}
        following = replace(follower, trace_of=lambda announced: published[announced.version])
        assert await following.take(first)
        assert not await following.take(bad)
        loaded, refused = read()
    assert (loaded.service, loaded.name, loaded.fault) == ("asyncflow-worker", "load", None)
    assert (loaded.trace_id, loaded.parent_id) == (published[1].trace_id, published[1].span_id)
    told = {name.removeprefix("asyncflow.") for name in loaded.attributes}
    assert told == set(traces.SPANS["load"].attributes)
    assert (refused.parent_id, refused.attributes) == (published[2].span_id, {"asyncflow.version": 2})
    assert refused.fault == "bad_files"


async def test_a_bad_version_is_never_handed_to_the_engine_and_the_next_one_is_loaded(follower, root, engine, state):
    first, bad, third = (write_version(root, version, TENSORS, probe=PROBE) for version in (1, 2, 3))
    (root / "00000002" / "model.safetensors").write_bytes(b"x")
    await follow(follower, first, bad)
    assert state.version == 1
    await follow(follower, third)
    assert engine.loaded == [1, 3]
    assert (state.version, state.refused, refused(state, "bad_files")) == (3, 1, 1)


async def test_a_version_that_vanished_is_skipped(follower, root, engine, state):
    gone, there = (write_version(root, version, TENSORS, probe=PROBE) for version in (1, 2))
    shutil.rmtree(version_path(str(root), 1))
    await follow(follower, gone, there)
    assert engine.loaded == [2]
    assert refused(state, "vanished") == 1


async def test_a_version_whose_removal_began_while_it_was_read_has_vanished(follower, root, store, monkeypatch):
    announced = write_version(root, 1, TENSORS, probe=PROBE)
    fetch = store.fetch

    def fetch_and_remove(wanted):
        fetched = fetch(wanted)
        shutil.rmtree(version_path(str(root), 1))
        return fetched

    monkeypatch.setattr(store, "fetch", fetch_and_remove)
    await follow(follower, announced)
    assert follower.engine.calls == []
    assert refused(follower.state, "vanished") == 1


async def test_a_version_through_memory_is_staged_and_then_loaded(follower, root, engine, state):
    await follow(follower, write_snapshot(root, 1, TENSORS, probe=PROBE))
    assert [name for name, _ in engine.calls] == ["snapshot", "load"]
    assert state.version == 1


async def test_a_buffer_that_was_written_over_leaves_the_old_version(follower, root, engine, state):
    await follow(follower, write_version(root, 1, TENSORS, probe=PROBE))
    engine.opens = False
    await follow(follower, write_snapshot(root, 2, TENSORS, probe=PROBE))
    assert engine.loaded == [1]
    assert (state.version, refused(state, "bad_files")) == (1, 1)


async def test_files_that_the_engine_cannot_open_leave_the_old_version(follower, root, engine, state):
    engine.opens = False
    await follow(follower, write_version(root, 1, TENSORS, probe=PROBE))
    assert engine.loaded == []
    assert (state.version, refused(state, "vanished")) == (0, 1)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_version_that_is_not_newer_is_not_loaded(follower, root, engine, state, version):
    announced = {number: write_version(root, number, TENSORS, probe=PROBE) for number in (1, 2)}
    await follow(follower, announced[2], announced[version])
    assert engine.loaded == [2]
    assert refused(state, "old") == 1


def flip_a_bit(directory):
    value = bytearray((directory / "model.safetensors").read_bytes())
    value[-1] ^= 1
    (directory / "model.safetensors").write_bytes(value)


def link_elsewhere(directory):
    directory.rename(directory.parent / "elsewhere")
    directory.symlink_to(directory.parent / "elsewhere")


DAMAGE = {
    "flipped bit": (flip_a_bit, "bad_files"),
    "missing file": (lambda directory: (directory / "model.safetensors").unlink(), "bad_files"),
    "extra file": (lambda directory: (directory / "extra.bin").write_bytes(b""), "bad_files"),
    "symlink": (link_elsewhere, "bad_files"),
    "other manifest": (lambda directory: (directory / "MANIFEST.json").write_bytes(b"{}"), "bad_manifest"),
    "no manifest": (lambda directory: (directory / "MANIFEST.json").unlink(), "vanished"),
    "no directory": (shutil.rmtree, "vanished"),
}
CONTENT = {
    "NaN": ({"w": torch.tensor([1.0, torch.nan])}, "nonfinite"),
    "infinite": ({"w": torch.tensor([1.0, -torch.inf])}, "nonfinite"),
    "names": ({"v": torch.ones(2)}, "bad_tensors"),
    "shape": ({"w": torch.ones(3)}, "bad_tensors"),
    "dtype": ({"w": torch.ones(2).half()}, "bad_tensors"),
}


async def serves_on(follower, root, bad, reason):
    """The bad version is refused once and loudly, the first is served on, a later good one is loaded."""
    engine, state = follower.engine, follower.state
    with capture_logs() as logs:
        await follow(follower, bad)
    said = [line for line in logs if line["event"] == "version_refused"]
    assert [(line["log_level"], line["reason"], line["serving"]) for line in said] == [("error", reason, 1)]
    assert (state.version, state.status()["refused"], refused(state, reason)) == (1, 1, 1)
    assert engine.loaded == [1]
    later = write_version(root, 3, TENSORS, probe=PROBE).model_copy(update={"generation": 2})
    await follow(follower, later)
    assert engine.loaded == [1, 3]
    assert state.version == 3


@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_damaged_version_is_refused_and_a_later_one_is_loaded(follower, root, kind):
    damage, reason = DAMAGE[kind]
    first, bad = (write_version(root, version, TENSORS, probe=PROBE) for version in (1, 2))
    await follow(follower, first)
    damage(root / "00000002")
    await serves_on(follower, root, bad, reason)


@pytest.mark.parametrize("kind", CONTENT)
async def test_wrong_tensors_are_refused_and_a_later_version_is_loaded(follower, root, kind):
    tensors, reason = CONTENT[kind]
    await follow(follower, write_version(root, 1, TENSORS, probe=PROBE))
    await serves_on(follower, root, write_version(root, 2, tensors, probe=PROBE), reason)


@pytest.mark.parametrize(
    "changes", [{"version": 2, "generation": 1}, {"version": 1, "generation": 5}, {"version": 5, "generation": 1}]
)
async def test_an_announcement_of_an_older_generation_or_version_is_refused(follower, root, changes):
    for version in (2, 5, 7):
        write_version(root, version, TENSORS, probe=PROBE)
    first = write_version(root, 1, TENSORS, probe=PROBE).model_copy(update={"generation": 2})
    await follow(follower, first)
    await serves_on(follower, root, first.model_copy(update=changes), "old")


async def test_a_probe_within_the_tolerance_is_applied(follower, root, engine, state):
    engine.logprobs = [-1.0009, -2.0009]
    await follow(follower, write_version(root, 1, TENSORS, probe=PROBE))
    assert state.version == 1


@pytest.mark.parametrize("logprobs", [[-1.0, -2.1], [-1.0], [-1.0, float("nan")]])
async def test_a_probe_that_disagrees_ends_the_follower_and_no_answer_leaves(follower, root, engine, state, logprobs):
    await follow(follower, write_version(root, 1, TENSORS, probe=PROBE))
    engine.logprobs = logprobs
    with pytest.raises(StateError, match="version 2 is loaded, but the engine's logprobs"):
        await follow(follower, write_version(root, 2, TENSORS, probe=PROBE))
    assert state.version == 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(state.settled(), 0.05)


async def test_a_probe_that_rounding_made_differ_once_is_asked_again(follower, root, engine, state):
    engine.logprobs, engine.later = [-1.0, -2.1], [[-1.0, -2.2], [-1.0, -2.0]]
    await follow(follower, write_version(root, 1, TENSORS, probe=PROBE))
    assert state.version == 1
    assert [name for name, _ in engine.calls].count("probe") == 2


async def test_an_update_during_which_requests_ran_is_counted(follower, root, state):
    first, second = (write_version(root, version, TENSORS, probe=PROBE) for version in (1, 2))
    await follow(follower, first)
    state.requests_running = 3
    await follow(follower, second)
    assert (state.updates, state.updates_in_flight) == (2, 1)
    assert state.metrics.updates.labels(in_flight="true")._value.get() == 1
