"""Matrix tiles of x86 processors (AMX): Linux ends a process that uses them and has not asked for them before.

vLLM 0.32's kernels for bfloat16 on a CPU use tiles wherever the processor has them. Who compiles the model has asked by
then, because torch's compiler does; nobody else has, and the first answer ends the engine with SIGILL. See "Using
dynamically enabled XSTATE features in user space applications" in Linux's Documentation/arch/x86/xstate.rst.
"""

import torch


def ask_for_tiles() -> bool:
    """For this process and all its threads; harmless where there are none and when it was done before.

    Returns:
        Whether tiles may be used from here on.
    """
    return torch.cpu._init_amx()
