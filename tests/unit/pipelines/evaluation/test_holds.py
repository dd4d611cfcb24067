"""What an evaluation holds stays in the weight store."""

import uuid

import pytest
import torch

from pipelines.evaluation.holds import Holds
from schemas.config import WeightsConfig
from trainers.publish import Facts, WeightStore

PROBE = {"token_ids": [1, 2], "logprobs": [-0.5]}


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return str(tmp_path / "weights") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def store_with(root, versions, **config):
    store = WeightStore(WeightsConfig(root=root, keep=1, **config))
    for version in versions:
        tensors = {"w": torch.arange(5000.0)}
        tensors["w"][::500] += version
        store.write(tensors, Facts(version=version, step=0, dtype="float32"), lambda: PROBE)
    return store


def test_held_versions_survive_until_they_are_let_go(root):
    store, holds = store_with(root, range(1, 6)), Holds(root, "held-out")
    holds.hold_only(2, 3)
    store.prune(announced=5)
    assert store._versions() == [2, 3, 5]
    holds.hold_only(2, None)
    store.prune(announced=5)
    assert store._versions() == [2, 5]
    assert (holds.has(2), holds.has(3)) == (True, False)


def test_two_evaluations_do_not_let_go_of_what_the_other_holds(root):
    store = store_with(root, range(1, 4))
    one, two = Holds(root, "one"), Holds(root, "two")
    one.hold_only(1)
    two.hold_only(1, 2)
    two.hold_only()
    store.prune(announced=3)
    assert store._versions() == [1, 3]


def test_a_held_delta_keeps_what_it_is_based_on(tmp_path):
    store = store_with(str(tmp_path), range(1, 8), delta=True, full_every=4)  # 1 and 5 are whole
    Holds(str(tmp_path), "held-out").hold_only(3)
    store.prune(announced=7)
    assert store._versions() == [1, 2, 3, 5, 6, 7]


def test_what_is_held_but_not_there_and_files_of_others_do_no_harm(root):
    store, holds = store_with(root, (1, 2)), Holds(root, "held-out")
    holds.hold_only(9)
    store._files.pipe_file(f"{store._root}/held/notes.txt", b"")
    store.prune(announced=2)
    assert (store._versions(), holds.has(9)) == ([2], False)
