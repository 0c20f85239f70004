"""Arrays in pieces that stay in the processor's cache, and the change of a tensor against a model.

A filter reads and writes a tensor of any size through these pieces, so that beside its result it
takes a few hundred kilobytes.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.messages import Tensor

Floats: TypeAlias = NDArray[np.float32]

PIECE = 1 << 16  # elements; 256 KiB of float32


def is_float(tensor: Tensor) -> bool:
    """Returns whether a tensor is of a float dtype; all others pass the encodings untouched."""
    return bool(np.issubdtype(tensor.dtype, np.floating))


def pieces(*arrays: Tensor, size: int = PIECE) -> Iterator[tuple[Tensor, ...]]:
    """Yields matching flat pieces of arrays of the same shape; one to be written is contiguous."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, size):
        yield tuple(array[start : start + size] for array in flat)


def changes(
    tensor: Tensor,
    reference: Tensor | None,
    residual: Floats | None,
    size: int = PIECE,
) -> Iterator[tuple[int, Floats]]:
    """Yields where a piece begins, and the piece of `tensor - reference + residual`, as float32.

    The difference is taken in the tensor's own precision. The piece is memory that is used again
    for the next one.
    """
    flat = tensor.reshape(-1)
    base = None if reference is None else reference.reshape(-1)
    buffer = np.empty(min(size, flat.size), np.float32)
    for start in range(0, flat.size, size):
        source = flat[start : start + size]
        piece = buffer[: source.size]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is infinite
            if base is None:
                np.copyto(piece, source, casting="same_kind")
            else:
                np.subtract(source, base[start : start + size], out=piece, casting="same_kind")
            if residual is not None:
                np.add(piece, residual[start : start + size], out=piece)
        yield start, piece


def add_to(target: Tensor, reference: Tensor | None, piece: Tensor) -> None:
    """Writes `reference + piece`, or the piece alone, into a flat contiguous target."""
    with np.errstate(over="ignore", invalid="ignore"):
        if reference is None:
            np.copyto(target, piece, casting="same_kind")
        else:
            np.add(reference, piece, out=target, casting="same_kind")
