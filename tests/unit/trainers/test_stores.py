"""The weight store and the checkpoints on the disk."""

import errno
import json
import sys
import uuid

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import RunConfig, WeightsConfig
from schemas.errors import ConfigError, DiskError, ModelError, StateError
from schemas.identity import GroupId
from schemas.ledger import StartEntry
from schemas.manifests import MANIFEST_NAME, Manifest, verify
from schemas.weights import WeightVersion, version_path
from trainers.accounts import Accounts
from trainers.checkpoint import CheckpointStore, State, newest_usable, require_fit
from trainers.disk import disk_errors
from trainers.publish import Facts, WeightStore, probe_tokens
from trainers.restart import History
from trainers.snapshots import Snapshots
from trainers.start import _require_same_topics

TENSORS = {"model.embed_tokens.weight": torch.arange(6.0).reshape(2, 3), "model.norm.weight": torch.ones(3)}
PROBE = {"token_ids": [1, 2, 3], "logprobs": [-0.5, -0.25]}


def write(store, version, tensors=TENSORS, **options):
    facts = Facts(version=version, step=version - 1, dtype="float32")
    return store.write(tensors, facts, lambda: PROBE, **options)


def announced(version, digest):
    return WeightVersion(version=version, step=0, generation=1, manifest_sha256=digest, dtype="float32",
                         base_model="tiny")  # fmt: skip


def moved(amount):
    """Large enough for a delta to be worth it, and with few changes."""
    tensors = {"w": torch.arange(5000.0)}
    tensors["w"][::500] += amount
    return tensors


def write_deltas(root, versions, **config):
    """Versions of a store with deltas, with their announcements."""
    store = WeightStore(WeightsConfig(root=str(root), delta=True, **config))
    return store, {version: announced(version, write(store, version, moved(version))) for version in versions}


def names(root, version):
    return sorted(path.name for path in (root / f"{version:08d}").iterdir())


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_version_reads_back_and_verifies(tmp_path, kind):
    root = str(tmp_path / "weights") if kind == "local" else f"memory://{uuid.uuid4().hex}"
    digest = write(WeightStore(WeightsConfig(root=root)), 12)
    files, base = fsspec.core.url_to_fs(root)
    directory = version_path(base, 12)
    manifest = Manifest.decode(files.cat_file(f"{directory}/{MANIFEST_NAME}"), digest)
    verify(files, directory, manifest)
    assert manifest.facts == {"kind": "weights", "version": 12, "step": 11, "dtype": "float32", "probe": PROBE}
    if kind == "local":
        loaded = load_file(f"{directory}/model.safetensors")
        assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_threads_hand_over_quickly_while_a_version_is_written_and_as_before_afterwards(tmp_path):
    before, seen = sys.getswitchinterval(), []

    def probe():
        seen.append(sys.getswitchinterval())
        return PROBE

    WeightStore(WeightsConfig(root=str(tmp_path))).write(TENSORS, Facts(version=1, step=0, dtype="float32"), probe)
    assert seen[0] < before / 10
    assert sys.getswitchinterval() == before


def test_version_is_never_written_twice(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path)))
    write(store, 1)
    with pytest.raises(FileExistsError):
        write(store, 1)


def test_newest_counts_directories_that_were_never_announced(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path)))
    assert store.newest() == 0
    write(store, 3)
    (tmp_path / "00000007").mkdir()
    assert store.newest() == 7


def test_changed_files_of_an_announced_version_are_told(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path)))
    announced = WeightVersion(version=1, step=0, generation=1, manifest_sha256=write(store, 1), dtype="float32",
                              base_model="tiny")  # fmt: skip
    assert store.fault(announced) is None
    model = tmp_path / "00000001" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + b"X")
    assert "model.safetensors" in store.fault(announced)
    model.write_bytes(whole)
    (tmp_path / "00000001" / MANIFEST_NAME).write_text("{}")
    assert "expected" in store.fault(announced)
    (tmp_path / "00000001" / MANIFEST_NAME).unlink()
    assert MANIFEST_NAME in store.fault(announced)


def test_version_without_room_leaves_nothing(tmp_path, monkeypatch):
    store = WeightStore(WeightsConfig(root=str(tmp_path)))

    def full(directory, manifest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write_manifest", full)
    with pytest.raises(DiskError, match="weight version 1"):
        write(store, 1)
    assert list(tmp_path.iterdir()) == []


def test_version_that_a_failing_store_cut_leaves_nothing(tmp_path, monkeypatch):
    store = WeightStore(WeightsConfig(root=str(tmp_path)))

    def fails(directory, manifest):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store, "_write_manifest", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write(store, 1)
    assert list(tmp_path.iterdir()) == []


def test_both_ways_of_writing_tensors_give_the_same_bytes(tmp_path):
    # A replay writes to a local directory what the run may have written to an object store.
    root = f"memory://{uuid.uuid4().hex}"
    assert write(WeightStore(WeightsConfig(root=root)), 1) == write(WeightStore(WeightsConfig(root=str(tmp_path))), 1)


def test_prune_keeps_the_newest_and_never_removes_the_announced_one(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path), keep=2))
    for version in range(1, 6):
        write(store, version)
    store.prune(announced=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000004", "00000005"]
    store.prune(announced=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000004", "00000005"]


def test_prune_does_not_count_versions_that_were_cut(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path), keep=2))
    for version in (1, 2, 5):
        write(store, version)
    for version in (3, 4, 6):
        (tmp_path / f"{version:08d}").mkdir()
    store.prune(announced=5)
    assert store._versions() == [2, 5, 6], "6 may be one that is being written"


def test_every_so_many_versions_are_whole_and_the_others_are_deltas(tmp_path):
    write_deltas(tmp_path, range(1, 6), full_every=3)
    whole = [MANIFEST_NAME, "model.safetensors"]
    delta = [MANIFEST_NAME, "SOURCE.json", "model.safetensors.delta"]
    assert [names(tmp_path, version) for version in range(1, 6)] == [whole, delta, delta, whole, delta]


def test_the_manifest_of_a_delta_is_that_of_the_whole_files(tmp_path):
    _, made = write_deltas(tmp_path / "deltas", (1, 2))
    store = WeightStore(WeightsConfig(root=str(tmp_path / "whole")))
    assert write(store, 2, moved(2)) == made[2].manifest_sha256


def test_a_delta_that_saves_nothing_is_not_written(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path), delta=True))
    for version in (1, 2):
        write(store, version, {"w": torch.randn(5000, generator=torch.Generator().manual_seed(version))})
    assert "model.safetensors" in names(tmp_path, 2)


def test_prune_keeps_what_deltas_are_based_on(tmp_path):
    store, _ = write_deltas(tmp_path, range(1, 8), full_every=4, keep=1)  # 1 and 5 are whole
    store.prune(announced=4)
    assert store._versions() == [1, 2, 3, 4, 5, 6, 7]
    store.prune(announced=7)
    assert store._versions() == [5, 6, 7]
    write(store, 8, moved(8))
    write(store, 9, moved(9))
    store.prune(announced=9)
    assert store._versions() == [9]


def test_prune_by_a_learner_that_started_later_keeps_them_too(tmp_path):
    write_deltas(tmp_path, range(1, 4))
    later = WeightStore(WeightsConfig(root=str(tmp_path), keep=1))
    later.prune(announced=3)
    assert later._versions() == [1, 2, 3]


@pytest.mark.parametrize("damaged", ["00000001/model.safetensors", "00000002/model.safetensors.delta"])
def test_a_damaged_base_or_delta_is_told(tmp_path, damaged):
    store, made = write_deltas(tmp_path, (1, 2, 3))
    assert store.fault(made[3]) is None
    file = tmp_path / damaged
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert file.name in store.fault(made[3])
    assert store.fault(announced(4, write(store, 4, moved(4), as_files=True))) is None, "published whole"


def test_memory_of_a_gpu_needs_one(tmp_path):
    with pytest.raises(ConfigError, match=r"set weights\.transport"):
        write(WeightStore(WeightsConfig(root=str(tmp_path), transport="ipc")), 1)


def test_weights_that_travel_through_memory_leave_their_layout(tmp_path):
    store = WeightStore(WeightsConfig(root=str(tmp_path), transport="nccl", buffers=1))
    first = announced(1, write(store, 1))
    assert names(tmp_path, 1) == [MANIFEST_NAME, "SOURCE.json", "layout.json"]
    assert "no engine has asked" in store.fault(first)
    store._broadcaster._sent.add(1)
    assert store.fault(first) is None
    source = tmp_path / "00000001" / "SOURCE.json"
    whole = source.read_text()
    source.write_text("{}")
    assert "bad_source" in store.fault(first)
    source.write_text(whole)
    store._snapshots.of(1).buffer[0] ^= 1
    assert "have changed" in store.fault(first)
    write(store, 2)
    assert "written over" in store.fault(first)
    write(store, 3, as_files=True)
    assert names(tmp_path, 3) == [MANIFEST_NAME, "model.safetensors"]
    store.close()


def test_equal_weights_have_equal_manifests_through_memory_too(tmp_path):
    roots = [tmp_path / name for name in "ab"]
    stores = [WeightStore(WeightsConfig(root=str(root), transport="nccl")) for root in roots]
    assert write(stores[0], 1) == write(stores[1], 1)
    for store in stores:
        store.close()


def test_buffers_are_used_in_turn():
    snapshots = Snapshots(2)
    first, second = (snapshots.take(moved(version), version) for version in (1, 2))
    assert snapshots.of(1) is first
    third = snapshots.take(moved(3), 3)
    assert third is first
    assert snapshots.of(1) is None
    assert snapshots.of(2) is second
    assert second.fault() is None


def test_the_probe_is_text_in_the_models_own_template(tmp_path):
    tokens = probe_tokens(str(build_tiny_model(tmp_path)))
    assert len(tokens) == 64
    assert tokens[0] == 3, "the user's turn comes first"
    assert tokens == probe_tokens(str(tmp_path))


def test_a_model_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match="tokenizer cannot be read"):
        probe_tokens(str(tmp_path))


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_full_disk_is_a_sentence(fault):
    with pytest.raises(DiskError, match="checkpoint cannot be written to /x"), disk_errors("checkpoint", "/x"):
        raise fault


def state(step=10, generation=1):
    accounts = Accounts()
    accounts.finish(GroupId(1, 5))
    return State(
        generation=generation, step=step, version=11, fingerprint={"dtype": "float32"}, config_sha256="ab",
        topic_ids={"demo.prompts": "id"}, positions={"0": 7}, letters_position=2, accounts=accounts.dump(),
        frontier={"0": 4}, admitted=4,
    )  # fmt: skip


def save(store, step, parent=None, generation=1):
    with store.new_directory(generation, step) as directory:
        (directory / "state").mkdir()
        (directory / "state" / "rank00-000.safetensors").write_bytes(b"weights of step %d" % step)
        return store.finish(directory, state(step, generation), parent)


def leave_unfinished(store, step):
    with store.new_directory(1, step) as directory:
        (directory / "state").mkdir()
    return directory


def history(*checkpoints):
    return History([StartEntry(generation=1), *(checkpoint.entry() for checkpoint in checkpoints)])


def test_newest_checkpoint_is_found_with_its_state(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    first = save(store, 10)
    second = save(store, 20, first.manifest_sha256)
    found = store.newest_verified(history(first, second))
    assert found == second
    assert found.state == state(20)


def test_flipped_bit_falls_back_to_the_older_one(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    first = save(store, 10)
    second = save(store, 20, first.manifest_sha256)
    (second.directory / "state" / "rank00-000.safetensors").write_bytes(b"weights of step 2X")
    assert store.newest_verified(history(first, second)) == first


def test_no_usable_checkpoint_is_an_error_and_never_a_fresh_start(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    only = save(store, 10)
    with pytest.raises(StateError, match="not on the surviving line"):
        store.newest_verified(History([]))
    (only.directory / "state.json").write_text("{}")
    with pytest.raises(StateError, match="no usable checkpoint"):
        store.newest_verified(history(only))
    empty = CheckpointStore(tmp_path / "elsewhere", keep=5)
    with pytest.raises(StateError, match="names one at step 10"):
        empty.newest_verified(history(only))


def test_run_that_never_had_one_starts_fresh_whatever_lies_unfinished(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    leave_unfinished(store, 10)
    assert store.newest_verified(history()) is None


def test_checkpoint_that_the_ledger_does_not_name_is_good(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    first = save(store, 10)
    second = save(store, 20, first.manifest_sha256)
    assert store.newest_verified(history(first)) == second


def test_checkpoint_with_an_unknown_parent_is_passed_over(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    first = save(store, 10)
    save(store, 20, "0" * 64)
    assert store.newest_verified(history(first)) == first


def test_prune_keeps_the_newest_whole_ones_and_clears_the_unfinished(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    made = [save(store, step) for step in (10, 20, 30)]
    unfinished = leave_unfinished(store, 40)
    store.prune()
    assert sorted(tmp_path.iterdir()) == sorted(checkpoint.directory for checkpoint in made[1:])
    assert not unfinished.exists()


def test_sweep_clears_the_unfinished_and_nothing_else(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    made = [save(store, step) for step in (10, 20)]
    leave_unfinished(store, 30)
    store.sweep()
    assert sorted(tmp_path.iterdir()) == sorted(checkpoint.directory for checkpoint in made)


def test_checkpoint_without_room_leaves_nothing(tmp_path):
    def save_half():
        with CheckpointStore(tmp_path, keep=1).new_directory(1, 10) as directory:
            (directory / "state").write_bytes(b"half")
            raise DiskError("no room")

    with pytest.raises(DiskError):
        save_half()
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_before_a_step_is_found_and_what_is_wrong_with_newer_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    made = [save(store, step) for step in (10, 20, 30)]
    assert newest_usable(tmp_path, history(*made), before=30) == (made[1], [])
    assert newest_usable(tmp_path, history(*made), before=31) == (made[2], [])
    assert newest_usable(tmp_path, history(*made), before=10) == (None, [])
    (made[1].directory / "state" / "rank00-000.safetensors").write_bytes(b"weights of step 2X")
    found, faults = newest_usable(tmp_path, history(*made), before=30)
    assert found == made[0]
    assert len(faults) == 1
    assert newest_usable(tmp_path / "missing", history()) == (None, [])
    assert not (tmp_path / "missing").exists()


def test_checkpoint_that_vanishes_while_it_is_read_is_passed_over(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=5)
    first, second = save(store, 10), save(store, 20)
    monkeypatch.setattr("trainers.checkpoint.verify", lambda *_: (second.directory / "state.json").unlink(True))
    found, faults = newest_usable(tmp_path, history(first, second))
    assert found == first
    assert "state.json" in faults[0]


def test_other_model_is_refused_with_both_names(tmp_path):
    saved = {"model": "tiny", "dtype": "float32"}
    require_fit(saved, dict(saved), tmp_path)
    with pytest.raises(ConfigError, match="model is 'tiny' in the checkpoint and 'large' now"):
        require_fit(saved, {**saved, "model": "large"}, tmp_path)


def test_state_is_json_and_nothing_else(tmp_path):
    checkpoint = save(CheckpointStore(tmp_path, keep=1), 10)
    assert json.loads((checkpoint.directory / "state.json").read_text())["frontier"] == {"0": 4}


def test_a_checkpoint_that_knew_of_no_pending_topic_is_read_from_its_beginning(tmp_path):
    checkpoint = save(CheckpointStore(tmp_path, keep=1), 10)
    known = json.loads((checkpoint.directory / "state.json").read_text())
    del known["pending_positions"]
    assert State(**known) == state(10)


def test_topics_that_a_checkpoint_does_not_know_are_no_reason_to_refuse_it():
    config, old = RunConfig(), state()
    _require_same_topics(config, old, {**old.topic_ids, "demo.pending": "new"})
    with pytest.raises(StateError, match="were deleted and made again"):
        _require_same_topics(config, old, {"demo.prompts": "other", "demo.pending": "new"})
