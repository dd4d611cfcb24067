"""Which GPUs learner and workers get."""

import pytest

from pipelines.local import placement
from pipelines.local.machine import Gpu
from pipelines.local.placement import Placement, environment_on, place, visible_gpus
from schemas.config import validate
from schemas.errors import ConfigError

CARD = Gpu("NVIDIA H200", 1, 1, "580")


def config(workers=1, ranks=1, transport="store", width=1):
    tree = {
        "local": {"workers": workers, "ranks": ranks},
        "weights": {"transport": transport},
        "worker": {"engine_args": {"tensor_parallel_size": width}},
    }
    return validate(tree, "of the test")


@pytest.mark.parametrize(
    ("asked", "visible", "learner", "workers"),
    [
        ({}, "", "", [""]),
        ({"workers": 3}, "", "", ["", "", ""]),
        ({}, "0", "0", ["0"]),
        ({"workers": 3}, "0", "0", ["0", "0", "0"]),
        ({}, "01", "0", ["1"]),
        ({"workers": 3}, "012", "0", ["1", "2", "1"]),
        ({"workers": 4, "ranks": 4}, "01234567", "0,1,2,3", ["4", "5", "6", "7"]),
        ({"workers": 2, "ranks": 2, "width": 2}, "012345", "0,1", ["2,3", "4,5"]),
        ({"workers": 2, "width": 2}, "0123", "0", ["1,2", "1,2"]),
        ({"workers": 2, "ranks": 2}, "01", "0,1", ["0", "1"]),
        ({"workers": 2, "transport": "ipc"}, "0123", "0", ["0", "0"]),
        ({"workers": 2, "transport": "nccl"}, "0123", "0", ["1", "2"]),
    ],
)
def test_the_learner_gets_the_first_and_workers_those_after_them(asked, visible, learner, workers):
    assert place(config(**asked), tuple(visible)) == Placement(learner, tuple(workers))


@pytest.mark.parametrize(
    ("asked", "visible", "message"),
    [
        ({"ranks": 3}, "01", "local.ranks = 3 exceeds the 2 GPUs here"),
        ({"width": 2}, "01", "tensor_parallel_size = 2 exceeds the 1 GPUs that are left"),
        ({"transport": "nccl"}, "0", "needs a GPU for workers beside the learner's"),
    ],
)
def test_too_few_are_told(asked, visible, message):
    with pytest.raises(ConfigError, match=message):
        place(config(**asked), tuple(visible))


def test_gpus_are_those_that_the_environment_names_or_all(monkeypatch):
    monkeypatch.setattr(placement, "gpus", lambda: (CARD,) * 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ("0", "1", "2")
    assert environment_on("1,2") == {"CUDA_VISIBLE_DEVICES": "1,2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a1")
    assert visible_gpus() == ("3", "GPU-a1")
    assert environment_on("GPU-a1") == {"CUDA_VISIBLE_DEVICES": "GPU-a1"}
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus() == ()
    assert environment_on("") == {}


def test_workers_that_nobody_would_find_are_refused():
    with pytest.raises(ConfigError, match=r"local\.workers = 2 needs rollout\.discover"):
        validate({"local": {"workers": 2}, "rollout": {"discover": False}}, "of the test")
