"""A process that asked for the matrix tiles of its processor may use them."""

import subprocess
import sys

import pytest
import torch

ASKED = """
import ctypes
from transforms.generation.worker.tiles import ask_for_tiles

def permitted():
    mask = ctypes.c_uint64()
    assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(mask)) == 0  # arch_prctl(ARCH_GET_XCOMP_PERM)
    return bool(mask.value >> 18 & 1)  # XTILEDATA

assert not permitted()
assert ask_for_tiles() and ask_for_tiles()
assert permitted()
"""
"""Linux's Documentation/arch/x86/xstate.rst names the numbers."""


def has_tiles():
    return torch.cpu._is_amx_tile_supported()


@pytest.mark.skipif(not has_tiles(), reason="the processor has no AMX")
def test_who_asks_may_use_tiles():
    subprocess.run([sys.executable, "-c", ASKED], check=True)


@pytest.mark.skipif(has_tiles(), reason="the processor has AMX")
def test_where_there_are_none_asking_harms_nothing():
    from transforms.generation.worker.tiles import ask_for_tiles

    assert not ask_for_tiles()
