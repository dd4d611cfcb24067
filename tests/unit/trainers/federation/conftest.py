"""What the tests of a coordinator's parts begin with."""

import pytest

from schemas.federation import CoordinatorStart
from trainers.federation.state import State


@pytest.fixture
def state():
    """Of a coordinator that has just begun, with version 1."""
    found = State(remembered=2)
    found.take(CoordinatorStart(generation=1, version=1, strategy="fedavg"))
    return found
