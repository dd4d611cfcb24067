"""How the numbers of an update are written, with what a codec leaves out kept for the site's next update.

    update + residual ──encode──► arrays of a file ──decode──► what the coordinator adds up
               ▲                        └──► update + residual - decoded = the next residual

=============  =======================================================  =====================
codec          arrays of a tensor ``w``                                 bytes a number
=============  =======================================================  =====================
full           ``w``: float32                                           4
sparse         ``w:index`` uint32 ascending, ``w:value`` float32        8 × ``keep_share``
int8           ``w:code`` int8, ``w:scale`` float32 of 1,024 numbers    1
sparse_int8    ``w:index``, ``w:code``, ``w:scale`` of those kept       5 × ``keep_share``
=============  =======================================================  =====================

With error feedback nothing is lost, only late: the sum of what was decoded so far, plus the residual, is the sum of all
updates. Sources: Seide et al. 2014 (1-bit SGD); Stich et al. 2018, arXiv:1809.07599 (sparsified SGD with memory);
Karimireddy et al. 2019, arXiv:1901.09847.

Shape suffixes: T numbers of one tensor, K those of it that are sent, B blocks of 1,024 of them.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

from collections.abc import Mapping
from math import ceil, prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from schemas.errors import RecordError
from schemas.federation import Codec
from trainers.federation.layout import Layout, Row

Arrays = dict[str, npt.NDArray[Any]]

BLOCK: Final = 1024
"""Numbers that share a scale."""
_LEVELS: Final = 127
_PARTS: Final[dict[Codec, dict[str, type[np.generic]]]] = {
    "full": {"": np.float32},
    "sparse": {":index": np.uint32, ":value": np.float32},
    "int8": {":code": np.int8, ":scale": np.float32},
    "sparse_int8": {":index": np.uint32, ":code": np.int8, ":scale": np.float32},
}
"""What stands after a tensor's name, and of which dtype it is."""


def encode(
    codec: Codec, tensors: Mapping[str, Row], residual: Mapping[str, Row] | None = None, *, keep_share: float = 0.01
) -> tuple[Arrays, dict[str, Row]]:
    """The arrays of an update's file, and what they lack.

    Args:
        codec: one of :data:`schemas.federation.Codec`.
        tensors: new weights minus those of the base version, float32.
        residual: what the site's last update lacked; null for nothing.
        keep_share: of the numbers of each tensor, with the sparse ones; at least one is sent.

    Returns:
        The arrays, and the next residual: zeros with ``full``.
    """
    arrays: Arrays = {}
    lacks: dict[str, Row] = {}
    for name, tensor in tensors.items():
        wanted_T = tensor.reshape(-1).astype(np.float32)
        if residual is not None:
            wanted_T = wanted_T + residual[name].reshape(-1)
        parts = _encode(codec, wanted_T, keep_share)
        arrays |= {f"{name}{part}": array for part, array in parts.items()}
        lacks[name] = (wanted_T - _decode(parts, wanted_T.size)).reshape(tensor.shape)
    if codec == "full":
        arrays = {name: array.reshape(tensors[name].shape) for name, array in arrays.items()}
    return arrays, lacks


def _encode(codec: Codec, wanted_T: Row, keep_share: float) -> Arrays:
    if codec == "full":
        return {"": wanted_T}
    if codec == "int8":
        return _to_bytes(wanted_T)
    index_K = _largest(wanted_T, keep_share)
    sent_K = wanted_T[index_K]
    return {":index": index_K, **(_to_bytes(sent_K) if codec == "sparse_int8" else {":value": sent_K})}


def _largest(wanted_T: Row, keep_share: float) -> npt.NDArray[np.uint32]:
    """Places of the numbers of largest size, ascending."""
    keep = min(wanted_T.size, max(1, round(keep_share * wanted_T.size)))
    if not keep:
        return np.empty(0, dtype=np.uint32)
    found_K = np.argpartition(np.abs(wanted_T), wanted_T.size - keep)[wanted_T.size - keep :]
    return np.sort(found_K.astype(np.uint32))


def _to_bytes(sent_K: Row) -> Arrays:
    """Each number as a multiple of a 127th of the largest of its block, rounded to the nearest."""
    blocks = _in_blocks(np.abs(sent_K))
    scale_B = (blocks.max(axis=1, initial=0.0) / _LEVELS).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        levels = _in_blocks(sent_K) / scale_B[:, None]
    levels = np.clip(np.nan_to_num(np.rint(levels)), -_LEVELS, _LEVELS)  # 0 / 0 in a block of zeros
    return {":code": levels.reshape(-1)[: sent_K.size].astype(np.int8), ":scale": scale_B}


def _in_blocks(sent_K: Row) -> Row:
    padded = np.zeros(ceil(sent_K.size / BLOCK) * BLOCK, dtype=np.float32)
    padded[: sent_K.size] = sent_K
    return padded.reshape(-1, BLOCK)


def decode(codec: Codec, arrays: Mapping[str, npt.NDArray[Any]], layout: Layout) -> Row:
    """The numbers of an update as one row; what came from outside is not believed.

    Args:
        codec: as announced.
        arrays: of the file.
        layout: of the model.

    Raises:
        RecordError: ``wrong_shape``: other tensors, dtypes, lengths or places than the codec's.
    """
    expected = {f"{name}{part}" for name in layout.shapes for part in _PARTS[codec]}
    if odd := sorted(expected ^ arrays.keys()):
        which = "missing" if odd[0] in expected else "unknown"
        raise RecordError("wrong_shape", f"{odd[0][:120]} is {which}, among {len(odd)} such arrays")
    row_P = np.empty(layout.size, dtype=np.float32)
    for name, shape, place in layout.places():
        parts = {part: arrays[f"{name}{part}"] for part in _PARTS[codec]}
        _check(codec, name, parts, shape)
        row_P[place] = _decode({part: array.reshape(-1) for part, array in parts.items()}, prod(shape))
    return row_P


def _check(codec: Codec, name: str, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> None:
    for part, array in parts.items():
        if array.dtype != _PARTS[codec][part]:
            raise RecordError("wrong_shape", f"{name}{part} is {array.dtype}, expected {_PARTS[codec][part].__name__}")
    size = prod(shape)
    if codec == "full" and parts[""].shape != shape:
        raise RecordError("wrong_shape", f"{name} is {parts[''].shape}, expected {shape}")
    if ":index" in parts:
        _check_places(name, parts[":index"], size)
        size = parts[":index"].size
    lengths = {":value": (size,), ":code": (size,), ":scale": (ceil(size / BLOCK),)}
    for part in parts.keys() & lengths.keys():
        if parts[part].shape != lengths[part]:
            raise RecordError("wrong_shape", f"{name}{part} is {parts[part].shape}, expected {lengths[part]}")


def _check_places(name: str, index_K: npt.NDArray[np.uint32], size: int) -> None:
    ascends = index_K.ndim == 1 and bool(np.all(index_K[1:] > index_K[:-1]))
    if not ascends or (index_K.size and int(index_K[-1]) >= size):
        raise RecordError("wrong_shape", f"{name}:index is not ascending within {size} numbers")


def _decode(parts: Mapping[str, npt.NDArray[Any]], size: int) -> Row:
    """One tensor, flat."""
    if "" in parts:
        return parts[""]
    sent_K = parts[":value"] if ":value" in parts else _from_bytes(parts[":code"], parts[":scale"])
    if ":index" not in parts:
        return sent_K
    row_T = np.zeros(size, dtype=np.float32)
    row_T[parts[":index"]] = sent_K
    return row_T


def _from_bytes(code_K: npt.NDArray[np.int8], scale_B: Row) -> Row:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found, and refused, as a whole
        levels: Row = (_in_blocks(code_K.astype(np.float32)) * scale_B[:, None]).reshape(-1)[: code_K.size]
    return levels
