"""Packed attention against attention written down anew: scores, a mask, a softmax."""

import inspect
import itertools
import math
import types

import pytest
import torch

from pipelines.local.tiny_model import build_tiny_model
from schemas.errors import ModelError
from trainers import attention
from trainers.attention import Sequences, packed_attention

LENGTHS = (5, 1, 9, 3)
LAYER = torch.nn.Module()


def draw(key_heads=2, width=8, value_width=None):
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, width), (key_heads, width), (key_heads, value_width or width))
    return [
        torch.randn(1, number, sum(LENGTHS), wide, generator=generator, requires_grad=True) for number, wide in shapes
    ]


def sequences(lengths=LENGTHS):
    return Sequences.of(lengths, torch.device("cpu"))


def expected(query, key, value, lengths=LENGTHS, *, window=None, scaling=None):
    """With a mask of N x N."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    number = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)])
    place = torch.arange(len(number))
    ago = place[:, None] - place[None]
    seen = (number[:, None] == number[None]) & (ago >= 0) & (ago < (window or len(number)))
    scores = query @ key.mT * (scaling or 1 / math.sqrt(query.shape[3]))
    return (scores.masked_fill(~seen, -math.inf).softmax(3) @ value).transpose(1, 2)


@pytest.mark.parametrize("changes", [{}, {"key_heads": 4}, {"key_heads": 1}, {"value_width": 16}])
@pytest.mark.parametrize("rules", [{}, {"scaling": 0.5}, {"window": 3}, {"window": 1}, {"window": 9}])
def test_output_and_gradients_are_those_of_a_mask(changes, rules):
    inputs = draw(**changes)
    window = rules.get("window")
    output, weights = packed_attention(
        LAYER, *inputs, None, sequences=sequences(), scaling=rules.get("scaling"), sliding_window=window, dropout=0.0
    )
    assert weights is None
    other = expected(*inputs, **rules)
    torch.testing.assert_close(output, other, atol=1e-5, rtol=0)
    pull = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(
        torch.autograd.grad(output, inputs, pull), torch.autograd.grad(other, inputs, pull), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_rows_without_boundaries_are_one_sequence_each():
    query, key, value = (torch.cat([tensor, tensor.flip(2)]) for tensor in draw())
    output, _ = packed_attention(LAYER, query, key, value, None)
    torch.testing.assert_close(output, expected(query, key, value, (sum(LENGTHS),)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("knows_groups", [True, False])
def test_kernel_for_all_sequences_is_told_boundaries_heads_and_window(monkeypatch, knows_groups):
    """The kernel itself needs a GPU; here it is written down anew, from nothing but what it is told."""

    def kernel(query, key, value, *told, enable_gqa=False, **options):
        assert enable_gqa == (query.shape[1] != key.shape[1])
        starts, key_starts, longest, key_longest = told
        assert starts is key_starts
        assert starts.dtype == torch.int32
        assert longest == key_longest == max(LENGTHS)
        assert options["window_size"][1] == 0
        lengths = [end - start for start, end in itertools.pairwise(starts.tolist())]
        parts = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        window = options["window_size"][0] + 1 or None
        return expected(*parts, lengths, window=window, scaling=options["scale"])[0]

    monkeypatch.setattr(attention, "_one_kernel_takes", lambda *_: True)

    def older_kernel(*tensors, scale, window_size):
        return kernel(*tensors, scale=scale, window_size=window_size)

    monkeypatch.setattr(attention, "_varlen", lambda: kernel if knows_groups else older_kernel)
    for rules in ({}, {"window": 3, "scaling": 0.5}):
        told = {"sliding_window": rules.get("window"), "scaling": rules.get("scaling")}
        output, _ = packed_attention(LAYER, *draw(), None, sequences=sequences(), **told)
        torch.testing.assert_close(output, expected(*draw(), **rules), atol=1e-5, rtol=0)


def test_torch_has_the_kernel_and_it_takes_half_precision_on_a_gpu_only():
    attend = attention._varlen()
    assert attend is not None
    names = list(inspect.signature(attend).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]

    def takes(dtype, cuda, width, value_width):
        tensors = [types.SimpleNamespace(is_cuda=cuda, dtype=dtype, shape=(1, 2, 3, w)) for w in (width, value_width)]
        return attention._one_kernel_takes(*tensors)

    assert takes(torch.bfloat16, True, 64, 64)
    assert not takes(torch.float32, True, 64, 64)
    assert not takes(torch.bfloat16, False, 64, 64)
    assert not takes(torch.bfloat16, True, 64, 32)
    assert not takes(torch.bfloat16, True, 20, 20)
    assert not takes(torch.bfloat16, True, 512, 512)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("window", [None, 3])
def test_kernel_on_a_gpu_gives_what_one_kernel_a_sequence_gives(window):
    inputs = [tensor.detach().to("cuda", torch.bfloat16).requires_grad_() for tensor in draw(width=64)]
    where = Sequences.of(LENGTHS, torch.device("cuda"))
    assert attention._one_kernel_takes(inputs[0], inputs[2])
    output, _ = packed_attention(LAYER, *inputs, None, sequences=where, sliding_window=window)
    other = expected(*(tensor.cpu().float() for tensor in inputs), window=window)
    torch.testing.assert_close(output.cpu().float(), other, atol=2e-2, rtol=2e-2)
    assert all(torch.isfinite(found).all() for found in torch.autograd.grad(output.sum(), inputs))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"is_causal": False}, "is_causal = False"),
        ({"dropout": 0.1}, r"dropout = 0\.1"),
        ({"attention_mask": torch.ones(1, 1, 18, 18)}, "attention_mask"),
    ],
)
def test_attention_that_is_not_computed_is_refused(given, named):
    with pytest.raises(ModelError, match=f"Module: its attention needs {named}, expected plain causal"):
        packed_attention(LAYER, *draw(), sequences=sequences(), **given)


def test_no_mask_is_built_for_it(tmp_path):
    """A mask of N x N is what it is for to avoid; transformers builds one for every attention that it has masks for."""
    from trainers.policy import load_model

    causal = load_model(str(build_tiny_model(tmp_path / "model")), torch.float32)
    seen = []
    causal.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    tokens = torch.arange(6, 24)[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    causal(tokens, position_ids=positions, use_cache=False, sequences=sequences())
    assert seen == [None]
