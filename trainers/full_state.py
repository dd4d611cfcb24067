"""What training goes on from, in full precision and whole, whatever ranks and stage it was computed with.

    weights, exp_avg, exp_avg_sq ──gather──► each rank writes its share of the tensors ──► rank00-000.safetensors …
    any ranks, any stage         ◄──take what is theirs── every rank maps all files ◄──┘    steps.json

DeepSpeed's own checkpoints are pickles in the shape of their ranks. These are plain tensors under the names of the
model, so a run goes on with other ranks or at another stage, and nothing that is read can run code.
Source: DeepSpeed 0.19, ``deepspeed/utils/tensor_fragment.py``.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from schemas.errors import StateError
from trainers.optimizer import MOMENTS, ClippedAdamW

_WEIGHTS: Final = "weights"
_SAVED: Final = "rank*.safetensors"
_STEPS_NAME: Final = "steps.json"
_FILE_BYTES: Final = 1 << 31
"""A file is closed once it has so many: no more than that is held at a time."""


class FullState:
    """Model and optimizer of one rank, as DeepSpeed has divided them.

    Args:
        parameters: of the model, under the names that they are saved by.
        engine: DeepSpeed's.
        optimizer: inside of it.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], engine: Any, optimizer: ClippedAdamW) -> None:
        self._parameters = parameters
        self._divided, self._optimizer = engine.optimizer, optimizer
        self._masters = self._find_masters()

    def save(self, directory: Path, rank: int, ranks: int) -> None:
        """Writes below a directory; a collective call."""
        self._link()
        own = (pair for number, pair in enumerate(self._gather()) if number % ranks == rank)
        for number, tensors in enumerate(_by_file(own)):
            save_file(tensors, directory / f"rank{rank:02d}-{number:03d}.safetensors")
        if rank == 0:
            (directory / _STEPS_NAME).write_text(json.dumps({"updates": self._optimizer.updates}))

    def _gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._parameters.items():
            master = self._masters.get(parameter)
            if master is not None:
                yield f"{_WEIGHTS}/{name}", master.detach()
                yield from ((f"{moment}/{name}", self._optimizer.state[master][moment]) for moment in MOMENTS)
            else:
                yield f"{_WEIGHTS}/{name}", safe_get_full_fp32_param(parameter)
                for moment in MOMENTS:
                    yield f"{moment}/{name}", safe_get_full_optimizer_state(parameter, moment)

    def load(self, directory: Path, fresh: Collection[str] = ()) -> None:
        """Takes this rank's part of what :meth:`save` wrote; the model's weights were loaded before.

        Args:
            directory: that it wrote to.
            fresh: names that stay as they are, with moments of 0.

        Raises:
            StateError: the tensors are not those of this model.
        """
        self._link(json.loads((directory / _STEPS_NAME).read_bytes())["updates"])
        with torch.no_grad(), TensorFiles(directory, _SAVED) as files:
            for name, parameter in self._parameters.items():
                if name in fresh:
                    continue
                kinds = (_WEIGHTS, *MOMENTS)
                self._set(parameter, *(files.read(f"{kind}/{name}").to(parameter.device) for kind in kinds))

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight whole and in full precision, by name, to be read before the next; a collective call."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._parameters.items():
            master = self._masters.get(parameter)
            yield name, safe_get_full_fp32_param(parameter) if master is None else master.detach()

    @torch.no_grad()
    def take(self, weights: Iterable[tuple[str, torch.Tensor]], *, forget: bool) -> None:
        """Goes on from other weights.

        Args:
            weights: by name, whole; those that are not among them stay as they are.
            forget: whether the optimizer begins anew.
        """
        self._link(0 if forget else None)
        for name, tensor in weights:
            parameter = self._parameters[name]
            whole = tensor.to(parameter.device, torch.float32)
            parameter.copy_(whole)
            self._set(parameter, whole)
        if forget:
            for state in self._optimizer.state.values():
                for moment in MOMENTS:
                    state[moment].zero_()

    def _set(self, parameter: torch.nn.Parameter, weights: torch.Tensor, *moments: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        master = self._masters.get(parameter)
        if master is not None:
            master.copy_(weights)
        else:
            safe_set_full_fp32_param(parameter, weights)
        for moment, tensor in zip(MOMENTS[: len(moments)], moments, strict=True):
            if master is not None:
                self._optimizer.state[master][moment].copy_(tensor)
            else:
                safe_set_full_optimizer_state(parameter, tensor, moment)

    def _find_masters(self) -> dict[torch.Tensor, torch.Tensor]:
        """What the optimizer steps on for each parameter where it is whole; empty where it is divided over ranks.

        At stage 0 that is the parameter itself, or in bfloat16 a copy of it in float32.
        """
        if self._divided is self._optimizer:
            return {parameter: parameter for parameter in self._parameters.values()}
        if not hasattr(self._divided, "fp32_groups"):
            return {}
        pairs = zip(self._divided.fp16_groups, self._divided.fp32_groups, strict=True)
        return {low: full for lows, fulls in pairs for low, full in zip(lows, fulls, strict=True)}

    def _link(self, updates: int | None = None) -> None:
        """DeepSpeed tells parameters where their moments are after the first step only."""
        stepped = getattr(self._divided, "fp32_partitioned_groups_flat", None)  # stage 3 shows them only in a step
        self._optimizer.prepare(stepped or [p for g in self._optimizer.param_groups for p in g["params"]], updates)
        link = getattr(self._divided, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()


def _by_file(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Copies of the tensors in the CPU's memory, as many as make a file."""
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        held[name] = tensor.to("cpu", copy=True).contiguous()
        if sum(each.nbytes for each in held.values()) >= _FILE_BYTES:
            yield held
            held = {}
    if held:
        yield held


def load_weights(parameters: Mapping[str, torch.nn.Parameter], directory: Path) -> None:
    """Overwrites a model's weights with the saved ones, before DeepSpeed divides them.

    Raises:
        StateError: the tensors are not those of this model.
    """
    with torch.no_grad(), TensorFiles(directory, _SAVED) as files:
        for name, parameter in parameters.items():
            tensor = files.read(f"{_WEIGHTS}/{name}")
            if tensor.shape != parameter.shape:
                raise StateError(f"{directory}: {name} is {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}")
            parameter.copy_(tensor)


def has_weights(directory: Path, name: str) -> bool:
    """Whether something was saved under a name."""
    with TensorFiles(directory, _SAVED) as files:
        return files.has(f"{_WEIGHTS}/{name}")


def require_tensors(files: "TensorFiles", shapes: Mapping[str, torch.Size], directory: Path) -> None:
    """Compares what files hold with what is expected.

    Raises:
        StateError: names or shapes differ.
    """
    if odd := sorted(files.names() ^ shapes.keys()):
        where = "lacks" if odd[0] in shapes else "has, beside those of the model,"
        raise StateError(f"{directory} {where} {odd[0]}; it was made with another model")
    for name, shape in shapes.items():
        found = files.read(name)
        if found.shape != shape:
            raise StateError(f"{directory}: {name} is {tuple(found.shape)}, the model's {tuple(shape)}")


class TensorFiles:
    """The tensors of a directory by name, mapped into memory."""

    def __init__(self, directory: Path, pattern: str = "*.safetensors") -> None:
        self._directory, self._opened = directory, ExitStack()
        self._paths = sorted(directory.glob(pattern))

    def __enter__(self) -> Self:
        files = [self._opened.enter_context(safe_open(path, framework="pt")) for path in self._paths]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._file_of

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """One tensor.

        Raises:
            StateError: there is none of this name.
        """
        if not self.has(name):
            raise StateError(f"{self._directory} lacks {name}; it was made with another model")
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor
