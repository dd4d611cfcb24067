"""The processes of one learner. Rank 0 plans and owns Kafka; the others follow.

Orders and examples travel as objects over gloo, gradients over whatever DeepSpeed uses.
"""

import os
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

_PATIENCE: Final = timedelta(days=30)
"""Followers wait for orders as long as rank 0 waits for prompts. A dead rank 0 closes the connection
and ends them at once."""


class Ranks:
    """The process group, whether a launcher (torchrun, deepspeed) made several processes or not."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        self._join("nccl" if cuda else "gloo")

    def _join(self, backend: str) -> None:
        if self.size == 1:
            # A store in memory: no port is opened, so none can be taken.
            dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, timeout=_PATIENCE)
        self._control: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def scatter(self, values: list[Any] | None = None) -> Any:
        """This rank's part of rank 0's list, whose length is the number of ranks."""
        if self.size == 1:
            assert values is not None
            return values[0]
        box: list[Any] = [None]
        dist.scatter_object_list(box, values, src=0, group=self._control)
        return box[0]

    def sum(self, values: list[float]) -> list[float]:
        """Element by element over all ranks; the same bits on every rank."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total, group=self._control)
        return total.tolist()

    def barrier(self) -> None:
        """Returns when all ranks are here."""
        if self.size > 1:
            dist.barrier(group=self._control)

    def leave(self) -> None:
        """Closes the process groups, whose threads must end before the interpreter does."""
        dist.destroy_process_group()
        self._control = None
