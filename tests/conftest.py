"""Fixtures that any test may ask for."""

import gc
import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: tests fetch nothing

pytest_plugins = [
    "tests.support.hosts",
    "tests.support.installed",
    "tests.support.kafka",
    "tests.support.learners",
    "tests.support.locks",
]


@pytest.fixture
def tidy():
    """Before a test that runs into the limit of recursion: what is freed there cannot run its finalizer."""
    gc.collect()


@pytest.fixture(autouse=True)
def _models_are_loaded_one_at_a_time():
    """Two loads at once would break every later test of the process that loads a model: see trainers/loading.py."""
    yield
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling:
        assert modeling.PreTrainedModel.tie_weights.__name__ == "tie_weights", "two threads loaded models at once"
