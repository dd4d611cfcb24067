"""Fixtures that any test may ask for."""

import gc
import os

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
