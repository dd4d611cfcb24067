"""Fixtures that any test may ask for."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: tests fetch nothing

pytest_plugins = ["tests.support.kafka", "tests.support.learners"]
