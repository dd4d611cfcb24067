"""Which GPUs the learner and the workers of a local stack get.

    GPUs that this process sees             0   1   2   3   4   5
    learner    local.ranks = 2            ◄─┴───┘   │   │   │   │
    worker     tensor_parallel_size = 2   ◄─────────┴───┘   │   │
    worker-2                              ◄─────────────────┴───┘

Processes are told by ``CUDA_VISIBLE_DEVICES``. Where nobody is left to choose from, GPUs are shared.
"""

import os
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from pipelines.local.machine import gpus
from schemas.config import RunConfig
from schemas.errors import ConfigError

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Placement:
    """GPUs as ``CUDA_VISIBLE_DEVICES`` names them, separated by commas; empty where this machine has none."""

    learner: str
    workers: tuple[str, ...]
    """One for each worker."""


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that a process started here sees: those that the environment names, otherwise all."""
    named = os.environ.get(_VISIBLE)
    if named is not None:  # CUDA sees those before the first that there cannot be, such as -1
        return tuple(takewhile(lambda name: name not in ("", "-1"), (part.strip() for part in named.split(","))))
    return tuple(str(number) for number in range(len(gpus())))


def place(config: RunConfig, visible: tuple[str, ...]) -> Placement:
    """Divides the GPUs.

    Raises:
        ConfigError: there are too few for the learner's ranks, for one worker, or for NCCL between both.
    """
    ranks, workers = config.local.ranks, config.local.workers
    if not visible:
        return Placement("", ("",) * workers)
    if ranks > len(visible):
        raise ConfigError(f"local.ranks = {ranks} exceeds the {len(visible)} GPUs here: each rank needs one; lower it")
    pool, width = _pool(config, visible), config.worker.tensor_parallel_size
    if width > len(pool):
        raise ConfigError(
            f"worker.engine_args.tensor_parallel_size = {width} exceeds the {len(pool)} GPUs that are left for workers "
            f"(of {len(visible)}, local.ranks = {ranks}); lower the one or the other"
        )
    places = [pool[start : start + width] for start in range(0, len(pool) - width + 1, width)]
    return Placement(
        ",".join(visible[:ranks]), tuple(",".join(places[number % len(places)]) for number in range(workers))
    )


def _pool(config: RunConfig, visible: tuple[str, ...]) -> tuple[str, ...]:
    """Those that workers get in turn."""
    if config.weights.transport == "ipc":
        return visible[:1]  # that of the rank that publishes
    rest = visible[config.local.ranks :]
    if config.weights.transport == "nccl" and not rest:
        raise ConfigError(
            f'weights.transport = "nccl" needs a GPU for workers beside the learner\'s: there are {len(visible)}, and '
            f'local.ranks = {config.local.ranks}; lower local.ranks, or set weights.transport = "ipc" or "store"'
        )
    return rest or visible


def environment_on(named: str) -> dict[str, str]:
    """What tells a process which GPUs are its own; nothing where there are none.

    Numbers are those of ``nvidia-smi``, unless who started this process gave them a meaning already.
    """
    if not named:
        return {}
    order = {} if _VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {_VISIBLE: named, **order}
