"""How updates are written: what comes back, that nothing is lost with error feedback, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.errors import RecordError
from trainers.federation.codecs import BLOCK, decode, encode
from trainers.federation.layout import Layout

CODECS = ("full", "sparse", "int8", "sparse_int8")
NUMBERS = st.floats(-1e3, 1e3, width=32)
TENSORS = st.fixed_dictionaries(
    {"b": hnp.arrays(np.float32, 3, elements=NUMBERS), "w": hnp.arrays(np.float32, (40, 70), elements=NUMBERS)}
)


def test_what_each_codec_writes_of_a_tensor():
    tensors = {"w": np.array([[0.5, -127.0], [2.0, 0.0]], dtype=np.float32)}
    layout = Layout.of(tensors)
    full, _ = encode("full", tensors)
    assert full["w"].tolist() == [[0.5, -127.0], [2.0, 0.0]]
    sparse, lacks = encode("sparse", tensors, keep_share=0.5)
    assert sparse["w:index"].tolist() == [1, 2]
    assert sparse["w:value"].tolist() == [-127.0, 2.0]
    assert lacks["w"].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    small, lacks = encode("int8", tensors)
    assert small["w:code"].tolist() == [0, -127, 2, 0]
    assert small["w:scale"].tolist() == [1.0]
    assert lacks["w"].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    both, _ = encode("sparse_int8", tensors, keep_share=0.5)
    assert decode("sparse_int8", both, layout).tolist() == [0.0, -127.0, 2.0, 0.0]


@pytest.mark.parametrize("codec", CODECS)
@given(steps=st.lists(TENSORS, min_size=1, max_size=4), keep_share=st.floats(0.001, 1))
@settings(max_examples=25, deadline=None)
def test_what_arrives_and_the_residual_are_all_that_was_learned(codec, steps, keep_share):
    layout = Layout.of(steps[0])
    arrived, residual = np.zeros(layout.size), None
    for step in steps:
        arrays, residual = encode(codec, step, residual, keep_share=keep_share)
        arrived += decode(codec, arrays, layout)
    truth = sum(layout.flatten(step).astype(float) for step in steps)
    np.testing.assert_allclose(arrived + layout.flatten(residual), truth, atol=1e-5 * 1e3 * len(steps))


@given(tensors=TENSORS)
@settings(max_examples=25, deadline=None)
def test_a_byte_is_within_half_a_step_of_its_number(tensors):
    arrays, lacks = encode("int8", tensors)
    for name, tensor in tensors.items():
        step = arrays[f"{name}:scale"].repeat(BLOCK)[: tensor.size]
        assert np.all(np.abs(lacks[name].reshape(-1)) <= step * 0.5001 + 1e-30)


def _broken():
    good, _ = encode("sparse_int8", {"w": np.ones(3000, dtype=np.float32)}, keep_share=0.5)
    index = good["w:index"]
    yield "another name", {"v:index": index, **{key: good[key] for key in ("w:code", "w:scale")}}, "v:index is unknown"
    yield "a part too few", {"w:index": index, "w:code": good["w:code"]}, "w:scale is missing"
    yield "a place beyond", {**good, "w:index": np.append(index[:-1], np.uint32(3000))}, "not ascending within 3000"
    yield "a place twice", {**good, "w:index": np.append(index[:-1], index[-2])}, "not ascending"
    yield "another dtype", {**good, "w:index": index.astype(np.int64)}, "is int64, expected uint32"
    yield "codes too few", {**good, "w:code": good["w:code"][:-1]}, r"w:code is \(1499,\), expected \(1500,\)"
    yield "scales too many", {**good, "w:scale": np.ones(9, np.float32)}, r"w:scale is \(9,\), expected \(2,\)"
    yield "places as a matrix", {**good, "w:index": index.reshape(2, -1)}, "not ascending"


@pytest.mark.parametrize(("arrays", "said"), [pytest.param(*case[1:], id=case[0]) for case in _broken()])
def test_arrays_that_are_not_the_codecs_are_refused(arrays, said):
    with pytest.raises(RecordError, match=said) as raised:
        decode("sparse_int8", arrays, Layout({"w": (3000,)}))
    assert raised.value.reason == "wrong_shape"


def test_a_full_update_of_the_right_size_and_another_shape_is_refused():
    with pytest.raises(RecordError, match=r"w is \(2, 3\), expected \(3, 2\)"):
        decode("full", {"w": np.ones((2, 3), np.float32)}, Layout({"w": (3, 2)}))
