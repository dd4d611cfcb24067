"""The command line, called in this process."""

import pytest

from pipelines.cli import logs
from tests.support.cli import caller


@pytest.fixture
def asyncflow(monkeypatch, capsys):
    """Runs the command here, which is faster; whatever it raises but does not tell fails the test."""
    monkeypatch.setattr(logs, "configure_logging", lambda: None)
    return caller(capsys)
