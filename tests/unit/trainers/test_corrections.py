"""Corrections on literal ratios, against numpy."""

import numpy as np
import pytest
import torch

from schemas.objectives import Bounds, ObjectiveConfig
from trainers.corrections import correct
from trainers.losses.sequences import Sequences

RATIO = np.array([1.0, 3.0, 0.5, 0.2, 4.0, 1.05, 0.9, 6.0])
OF = np.array([0, 0, 0, 1, 1, 2, 2, 3])
PRODUCT = np.array([1.5, 1.5, 1.5, 0.8, 0.8, 0.945, 0.945, 6.0])
MEAN = np.array([1.5 ** (1 / 3)] * 3 + [0.8**0.5] * 2 + [0.945**0.5] * 2 + [6.0])


def inside(ratio, low, high):
    return (ratio >= low) & (ratio <= high)


EXPECTED = {
    "none": (Bounds(None, None), np.ones(8), np.zeros(8, bool)),
    "decoupled": (Bounds(None, None), RATIO, np.zeros(8, bool)),
    "truncated_token": (Bounds(None, 2.0), np.minimum(RATIO, 2.0), RATIO > 2),
    "truncated_sequence": (Bounds(None, 1.2), np.minimum(PRODUCT, 1.2), PRODUCT > 1.2),
    "masked_token": (Bounds(None, 2.0), RATIO * (RATIO <= 2), RATIO > 2),
    "masked_sequence": (Bounds(None, 2.0), PRODUCT * (PRODUCT <= 2), PRODUCT > 2),
    "icepop": (Bounds(0.5, 5.0), RATIO * inside(RATIO, 0.5 - 1e-9, 5.0), ~inside(RATIO, 0.5 - 1e-9, 5.0)),
    "geometric_mask": (Bounds(0.95, 1.1), inside(MEAN, 0.95, 1.1) * 1.0, ~inside(MEAN, 0.95, 1.1)),
}


def test_every_correction_of_the_configuration_is_tested_here():
    assert EXPECTED.keys() == set(ObjectiveConfig.model_fields["correction"].annotation.__args__)


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_and_what_was_cut_are_those_of_numpy(name):
    bounds, weights, cut = EXPECTED[name]
    log_ratio = torch.tensor(np.log(RATIO) + (1e-9 if name == "icepop" else 0), dtype=torch.float64)
    found = correct(name, log_ratio, Sequences.count(torch.tensor(OF), 4), bounds)
    np.testing.assert_allclose(found.weights_R, weights, rtol=0, atol=1e-6)
    assert found.cut_R.tolist() == cut.tolist()
    assert cut.any() == (name not in ("none", "decoupled")), "the example cuts something"


def test_weights_have_no_gradient():
    log_ratio = torch.zeros(8, requires_grad=True)
    for name, (bounds, _, _) in EXPECTED.items():
        assert not correct(name, log_ratio, Sequences.count(torch.tensor(OF), 4), bounds).weights_R.requires_grad, name
