"""How a model takes a version that is staged: found out once, and then repeated in a few kernels.

    first load    tensors ─► model.load_weights() ─┬─► the model's parameters
                                                   └─► list of (parameter's part, staged part)
    every other   list ─► one copy of all its pairs ─► the model's parameters

vLLM's ``load_weights`` looks for the parameter of every tensor and gives the GPU a copy for each of them: 30 ms for
the 272 of SmolLM2-135M, in which nothing is generated. What a load did is written down operation by operation. Only
one that did nothing but copy staged memory is repeated; models that compute with what they load are loaded as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable


class Copies:
    """The copies that the last load of one form consisted of."""

    def __init__(self) -> None:
        self._form: object = None
        self._targets: list[torch.Tensor] = []
        self._sources: list[torch.Tensor] = []

    def load(self, form: tuple[int, object], load: Callable[[], None]) -> None:
        """Loads what is staged.

        Args:
            form: address of the staged memory, and how the tensors lie in it.
            load: loads them through the model.
        """
        if form == self._form:
            with torch.no_grad():
                torch._foreach_copy_(self._targets, self._sources)
            return
        recorder = Recorder(form[0])
        with recorder:
            load()
        self._form = form if recorder.is_whole else None
        self._targets, self._sources = recorder.targets, recorder.sources


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down copies from a memory, and whether anything else was done.

    Attributes:
        targets: parts of the model, in the order of the copies.
        sources: the parts of the memory that were copied there.
        is_whole: whether the copies are all that was done.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory
        self.targets: list[torch.Tensor] = []
        self.sources: list[torch.Tensor] = []
        self.is_whole = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operation below autograd."""
        if func is torch.ops.aten.copy_.default and args[1].untyped_storage().data_ptr() == self._memory:
            self.targets.append(args[0].detach())
            self.sources.append(args[1].detach())
        elif not func.is_view and not _is_of_nothing(func, args):
            self.is_whole = False
        return func(*args, **(kwargs or {}))


def _is_of_nothing(func: Any, args: Any) -> bool:
    """Whether an operation overwrites an empty tensor, as embeddings do with the rows that they do not pad."""
    return func is torch.ops.aten.fill_.Scalar and not args[0].numel()
