"""A state dict as one row of numbers: its tensors, by name in alphabetical order, one after the other.

Shape suffix: P all numbers of the model, or of the adapter.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Self

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that travel. Example: ``Layout({"b": (2,), "w": (3, 2)})``, 8 numbers."""

    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Self:
        """That of a state dict."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @cached_property
    def size(self) -> int:
        """Numbers in all."""
        return sum(prod(shape) for shape in self.shapes.values())

    def places(self) -> Iterator[tuple[str, Shape, slice]]:
        """Where each tensor lies in a row."""
        begin = 0
        for name in sorted(self.shapes):
            end = begin + prod(self.shapes[name])
            yield name, self.shapes[name], slice(begin, end)
            begin = end

    def flatten(self, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Row:
        """One row of a state dict that has these tensors.

        Raises:
            ValueError: it has others, naming one of them.
        """
        found = Layout.of(tensors)
        if dict(found.shapes) != dict(self.shapes):
            raise ValueError(self._difference(found))
        row_P = np.empty(self.size, dtype=np.float32)
        for name, _, place in self.places():
            row_P[place] = tensors[name].reshape(-1)
        return row_P

    def unflatten(self, row_P: Row) -> dict[str, Row]:
        """The tensors of a row, as views of it."""
        return {name: row_P[place].reshape(shape) for name, shape, place in self.places()}

    def _difference(self, other: "Layout") -> str:
        for name in sorted(self.shapes.keys() | other.shapes.keys()):
            given, expected = other.shapes.get(name), self.shapes.get(name)
            if given != expected:
                return f"{name[:120]} is {given or 'missing'}, expected {expected or 'no such tensor'}"
        raise AssertionError("equal layouts")
