"""Benchmarks that start together and measure one after the other: a start takes minutes, a measurement one.

    benchmark A   starts ───────► measures ─► ends
    benchmark B   starts ─► waits for FILE ──────► measures          FILE: made by whoever knows that A has ended

What waits is loaded and idle.
"""

import sys
import time
from pathlib import Path

LONGEST_S = 1800


def add_option(parser):
    parser.add_argument("--after", type=Path, metavar="FILE",
                        help="measure once this file is there; several benchmarks can start together")  # fmt: skip


def wait_for_turn(file):
    """Returns when the file is there; at once if there is none to wait for."""
    sys.stderr.write(f"waits for {file}\n")
    deadline = time.monotonic() + LONGEST_S
    while file is not None and not file.exists():
        assert time.monotonic() < deadline, f"{file} was not made within {LONGEST_S} s"
        time.sleep(0.2)
