"""Which number format this machine multiplies fastest."""

import time
from typing import Any, Final, Literal

_ROWS: Final = 512
_ROUNDS: Final = 3


def fastest_dtype() -> Literal["float32", "bfloat16"]:
    """Measures one matrix product in both formats, some tens of milliseconds in all.

    CPUs differ by a factor of eight either way: without avx512_bf16 or AMX, bfloat16 is emulated.
    CUDA devices are not measured: bfloat16.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    return "bfloat16" if _seconds(torch.bfloat16) < _seconds(torch.float32) else "float32"


def _seconds(dtype: Any) -> float:
    import torch

    matrix = torch.ones(_ROWS, _ROWS, dtype=dtype)
    times = []
    for _ in range(_ROUNDS + 1):  # the first one sets up the kernel
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - start)
    return min(times[1:])
