"""What is loaded into the engine from the files of a version."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from transforms.generation.worker.transfer import _of_files, computes_in_place, with_head

EMBEDDING = torch.arange(6.0).reshape(3, 2)


def load(tmp_path, *files, add_tied_head=True):
    handles = []
    for number, tensors in enumerate(files):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        handles.append(safe_open(tmp_path / f"{number}.safetensors", framework="pt"))
    tensors = _of_files(handles)
    return list(with_head(tensors) if add_tied_head else tensors)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight"])
def test_a_tied_head_is_the_embedding(tmp_path, name):
    loaded = dict(load(tmp_path, {name: EMBEDDING}))
    assert torch.equal(loaded["lm_head.weight"], EMBEDDING)


def test_a_head_of_its_own_is_not_overwritten(tmp_path):
    head = EMBEDDING + 1
    loaded = load(tmp_path, {"model.embed_tokens.weight": EMBEDDING}, {"lm_head.weight": head.clone()})
    assert [name for name, _ in loaded] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert torch.equal(dict(loaded)["lm_head.weight"], head)


def test_a_model_without_a_head_gets_none(tmp_path):
    loaded = load(tmp_path, {"model.embed_tokens.weight": EMBEDDING}, add_tied_head=False)
    assert [name for name, _ in loaded] == ["model.embed_tokens.weight"]


def layer(**attributes):
    module = torch.nn.Module()
    vars(module).update(attributes)
    return torch.nn.Sequential(torch.nn.LayerNorm(2), module)


def test_plain_layers_are_overwritten_and_those_that_convert_their_weights_are_not():
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    class Packed(UnquantizedLinearMethod):
        pass

    assert computes_in_place(layer(quant_method=UnquantizedLinearMethod()))
    assert computes_in_place(layer())
    assert not computes_in_place(layer(quant_method=Packed()))
    assert not computes_in_place(layer(process_weights_after_loading=print))
