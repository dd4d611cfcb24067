"""``layout.json`` and ``SOURCE.json``: what is not one is refused in words, and nothing of it is used."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from schemas.digests import digests
from schemas.errors import RecordError
from schemas.snapshots import Delta, decode_layout, decode_source, lay_out, views

TENSORS = {"a": torch.arange(5.0).bfloat16(), "b": torch.ones(2, 3), "c": torch.tensor(2.0).half()}
MEMORY = {"kind": "ipc", "gpu": "ab-12", "handle": "00ff", "size": 64, "offset": 0, "counter": "/torch_1_2_3",
          "counter_offset": 0, "event": "00", "event_sync": True}  # fmt: skip
BROADCAST = {"kind": "nccl", "version": 1, "host": "10.0.0.1", "port": 1, "timeout_s": 1.0}
ENTRY = {"name": "a.delta", "size": 1, "sha256": "0" * 64}
DELTA = {"kind": "delta", "base": 1, "base_manifest_sha256": "0" * 64, "files": [ENTRY]}


def layout_text(**changes):
    layout = lay_out(TENSORS)
    buffer = torch.zeros(layout.size, dtype=torch.uint8)
    return json.dumps(layout.model_dump(mode="json") | {"digests": digests(buffer)} | changes)


def test_a_layout_says_where_the_tensors_are():
    layout = decode_layout(layout_text())
    buffer = torch.zeros(layout.size, dtype=torch.uint8)
    for name, place in views(buffer, layout).items():
        place.copy_(TENSORS[name])
    found = views(buffer, layout)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def place(**changes):
    return {"name": "a", "dtype": "bfloat16", "shape": [4], "offset": 0} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 8},
        {"size": 12},
        {"size": 1 << 50},
        {"digests": []},
        {"digests": ["0" * 32] * 2},
        {"digests": ["x"]},
        {"tensors": []},
        {"tensors": [place(), place()]},
        {"tensors": [place(), place(name="b")]},
        {"tensors": [place(offset=8)]},
        {"tensors": [place(offset=-64)]},
        {"tensors": [place(shape=[-1])]},
        {"tensors": [place(shape=[1 << 40])]},
        {"tensors": [place(dtype="int64")]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_layout_that_does_not_fit_itself_is_refused(changes):
    with pytest.raises(RecordError) as caught:
        decode_layout(layout_text(**changes))
    assert caught.value.reason == "bad_tensors"


@pytest.mark.parametrize("source", [MEMORY, BROADCAST, DELTA], ids=lambda source: source["kind"])
def test_every_kind_of_source_reads_back(source):
    assert json.loads(decode_source(json.dumps(source)).model_dump_json()) == source


@pytest.mark.parametrize(
    "source",
    [
        {},
        [],
        {"kind": "pickle"},
        MEMORY | {"handle": "xyz"},
        MEMORY | {"handle": "0"},
        MEMORY | {"counter": "/dev/shm/../../etc/passwd"},
        MEMORY | {"counter": "torch_1_2_3"},
        MEMORY | {"size": -1},
        MEMORY | {"size": "1 GB"},
        MEMORY | {"code": "…"},
        BROADCAST | {"host": "a b"},
        BROADCAST | {"port": 0},
        BROADCAST | {"timeout_s": 1e9},
        DELTA | {"files": []},
        DELTA | {"files": [ENTRY | {"name": "../x"}]},
        DELTA | {"base": 0},
    ],
    ids=str,
)
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(RecordError) as caught:
        decode_source(json.dumps(source))
    assert caught.value.reason == "bad_source"


@given(rubbish=st.binary(max_size=100) | st.text(max_size=100))
def test_rubbish_is_refused(rubbish):
    with pytest.raises(RecordError):
        decode_source(rubbish)
    with pytest.raises(RecordError):
        decode_layout(rubbish)


def test_a_delta_is_of_its_kind():
    assert isinstance(decode_source(json.dumps(DELTA)), Delta)


def test_weights_of_another_dtype_have_no_layout():
    with pytest.raises(ValueError, match="dtype"):
        lay_out({"a": torch.ones(2, dtype=torch.int64)})
