"""Decoders that fail in every way that the runner must notice."""

import os
import signal
import time


def _die_sometimes(draw):
    if draw.random() < 0.1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "decoded"


def _hang_sometimes(draw):
    if draw.random() < 0.1:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as inside of a C function
        time.sleep(3600)
    return "decoded"


def _raise_sometimes(draw):
    return "decoded" if draw.random() < 0.9 else 1 // 0


def _grow(draw):
    if draw.random() < 0.1:
        bytearray(b"x") * (1 << 30)
    return "decoded"


CASES = {"dies": _die_sometimes, "hangs": _hang_sometimes, "raises": _raise_sometimes, "grows": _grow}
