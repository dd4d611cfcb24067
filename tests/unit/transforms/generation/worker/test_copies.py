"""What a load copied from staged memory is copied again without the model; anything else is loaded through it."""

import pytest
import torch

from transforms.generation.worker.copies import Copies

ELSEWHERE = torch.full((6,), 5.0)


class Model:
    """Two tensors of staged memory become one parameter, as vLLM merges the projections of a layer."""

    def __init__(self) -> None:
        self.staged = torch.arange(6.0)
        self.parameter = torch.nn.Parameter(torch.zeros(8, dtype=torch.bfloat16), requires_grad=False)
        self.loads = 0
        self.also = lambda: None

    @property
    def form(self):
        return self.staged.data_ptr(), ("a", "b")

    def load(self):
        self.loads += 1
        self.parameter.data.narrow(0, 0, 4).copy_(self.staged[:4])
        self.parameter.data[4:6].copy_(self.staged.view(3, 2)[2])
        self.also()

    def values(self):
        return self.parameter[:6].tolist()


@pytest.fixture
def model():
    return Model()


def load_twice(model):
    copies = Copies()
    copies.load(model.form, model.load)
    model.staged += 10
    copies.load(model.form, model.load)
    return copies


def test_the_second_version_of_a_form_is_copied_without_the_model(model):
    load_twice(model)
    assert model.values() == [10, 11, 12, 13, 14, 15]
    assert model.loads == 1


def test_memory_that_lies_elsewhere_is_loaded_through_the_model(model):
    copies = load_twice(model)
    model.staged = torch.zeros(6)
    copies.load(model.form, model.load)
    assert model.values() == [0] * 6
    assert model.loads == 2


@pytest.mark.parametrize(
    "also",
    [
        lambda model: model.parameter.data[:6].mul_(2),
        lambda model: model.parameter.data[6:].fill_(1),
        lambda model: model.parameter.data[:6].copy_(model.staged + 1),
        lambda model: model.parameter.data[:6].copy_(ELSEWHERE),
        lambda model: model.parameter.data[:6].fill_(model.staged[0].item()),
    ],
)
def test_a_model_that_computes_with_what_it_loads_is_never_passed_by(model, also):
    model.also = lambda: also(model)
    load_twice(model)
    assert model.loads == 2


def test_an_embedding_that_pads_no_rows_only_copies(model):
    model.also = lambda: model.parameter.data[8:].fill_(0)
    load_twice(model)
    assert model.loads == 1
