"""Only the largest changes, by index, and error feedback for all the others."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from prefect_federated.errors import ProtocolError
from prefect_federated.filters.blocks import PIECE, Floats, changes
from prefect_federated.filters.claims import Claim
from prefect_federated.filters.encoding import encode
from prefect_federated.filters.feedback import Feedback, Memory
from prefect_federated.filters.passage import Passage
from prefect_federated.memory import empty, zeros
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors
from prefect_federated.wire import TensorSpec

_BINS = 1 << 12  # of the magnitudes, by their upper bits: exponent and four bits of the fraction
_SHIFT = np.uint32(19)
_INFINITE = 0x7F800000 >> 19  # the bin of infinity; from here on nothing is finite


class TopK(BaseModel):
    """Sends of each tensor's change the elements of largest magnitude; the rest waits.

    What is not sent is kept at the site and added in the next round, so that it is sent once it has
    grown large enough. Only changes are made sparse: tensors that the site's model has in the same
    shape, or all floats after `difference`; with `on: tensors` the tensors themselves. Tensors that
    would not get smaller travel as they are. A tensor that holds a NaN or an infinity fails.

    On the wire a tensor is its chosen elements, float32, and a second tensor `name + "#at"` with
    their indices, `U32` (`U64` from 2**32 elements on), ascending.

    Source: Aji and Heafield 2017, "Sparse Communication for Distributed Gradient Descent" (here by
    tensor, the threshold exact); Stich et al. 2018, "Sparsified SGD with Memory", Algorithm 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "top_k"

    fraction: float | None = Field(
        default=None, gt=0, lt=1, description="Share of each tensor's elements that is sent."
    )
    count: int | None = Field(
        default=None, ge=1, description="Elements of each tensor that are sent."
    )
    on: Literal["change", "tensors"] = Field(
        default="change",
        description="Send the largest changes against the received model, or the largest elements.",
    )
    feedback: bool = Field(
        default=True, description="Add to the next round what was not sent in this one."
    )
    min_elements: int = Field(
        default=256, ge=1, description="Tensors of fewer elements travel as they are."
    )
    _memory: Memory = PrivateAttr(default_factory=Memory)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either `fraction` or `count`")
        return self

    @property
    def memory(self) -> Memory | None:
        """Where residuals are kept without a state folder; None without feedback."""
        return self._memory if self.feedback else None

    @property
    def options(self) -> dict[str, JsonValue]:
        """None: all is in the tensors."""
        return {}

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message with the largest changes only.

        Raises:
            ValueError: a tensor holds a NaN or an infinity.
        """
        return encode(self, message, passage)

    def takes(self, tensor: Tensor, is_change: bool) -> bool:
        """Returns whether the tensor is a change, large, and gets smaller."""
        if tensor.size < self.min_elements or not (is_change or self.on == "tensors"):
            return False
        element_bytes = 4 + _index_dtype(tensor.size).itemsize
        return self._sent(tensor.size) * element_bytes < tensor.nbytes

    def _sent(self, size: int) -> int:
        if self.count is not None:
            return min(self.count, size)
        return math.ceil((self.fraction or 0) * size)

    def encoded(
        self, name: str, tensor: Tensor, reference: Tensor | None, feedback: Feedback | None
    ) -> Tensors:
        """Returns the chosen elements and their indices."""
        residual = None if feedback is None else feedback.before(name)

        def all_changes() -> Iterator[tuple[int, Floats]]:
            return changes(tensor, reference, residual)

        sent = self._sent(tensor.size)
        try:
            smallest, ties = _threshold(all_changes, sent)
        except FloatingPointError:
            raise ValueError(f"tensor {name!r} holds NaN or infinity") from None
        values = empty((sent,), np.float32)
        indices = empty((sent,), _index_dtype(tensor.size))
        done = 0
        for start, piece in all_changes():
            magnitude = np.abs(piece)
            chosen = np.flatnonzero(magnitude >= smallest)
            equal = magnitude[chosen] == smallest
            found = int(np.count_nonzero(equal))
            if found > ties:
                chosen = chosen[~equal | (np.cumsum(equal) <= ties)]
                ties = 0
            else:
                ties -= found
            values[done : done + chosen.size] = piece[chosen]
            indices[done : done + chosen.size] = chosen + start
            done += chosen.size
            if feedback is not None:
                piece[chosen] = 0
                feedback.keep(piece)
        return {name: values, _indices_of(name): indices}


def _indices_of(name: str) -> str:
    return f"{name}#at"


def _index_dtype(size: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u4") if size < 1 << 32 else np.dtype("<u8")


def _threshold(
    all_changes: Callable[[], Iterator[tuple[int, Floats]]], sent: int
) -> tuple[Floats, int]:
    """Returns the smallest magnitude that is sent, and how many elements just as large are sent.

    Counts magnitudes by their upper bits first, then looks at the one bin where the limit lies, so
    it needs no second copy of the tensor.

    Raises:
        FloatingPointError: a NaN or an infinity.
    """
    counts = np.zeros(_BINS, np.int64)
    for _, piece in all_changes():
        counts += np.bincount(_bins(piece), minlength=_BINS)
    if counts[_INFINITE:].any():
        raise FloatingPointError
    from_top = counts[::-1].cumsum()
    place = int(np.searchsorted(from_top, sent))
    limit = _BINS - 1 - place
    needed = sent - int(from_top[place] - counts[limit])
    found = [np.abs(piece[_bins(piece) == limit]) for _, piece in all_changes()]
    candidates = np.concatenate(found)
    candidates.partition(candidates.size - needed)
    smallest = candidates[candidates.size - needed]
    return smallest, needed - int(np.count_nonzero(candidates > smallest))


def _bins(piece: Floats) -> NDArray[np.uint32]:
    bins = piece.view(np.uint32) >> _SHIFT
    bins &= np.uint32(_BINS - 1)
    return bins


class TopKDecoder:
    """The way back from the largest changes: added to the model's tensor, or to zeros."""

    def companions(self, name: str) -> tuple[str, ...]:
        """Returns the name of the tensor of indices."""
        return (_indices_of(name),)

    def check(self, claim: Claim, specs: Mapping[str, TensorSpec]) -> None:
        """Checks that there is an index for each element, and no more than the tensor has."""
        values = specs.get(claim.name)
        sent = values.shape[0] if values is not None and len(values.shape) == 1 else claim.size
        if sent > claim.size:
            raise ProtocolError(f"tensor {claim.name!r}: {sent:,} of {claim.size:,} elements.")
        claim.expect(specs, claim.name, TensorSpec("F32", (sent,)))
        dtype = "U32" if claim.size < 1 << 32 else "U64"
        claim.expect(specs, _indices_of(claim.name), TensorSpec(dtype, (sent,)))

    def decode(
        self, claim: Claim, tensors: Mapping[str, Tensor], reference: Tensor | None
    ) -> Tensor:
        """Returns the tensor in its own dtype and shape."""
        values, indices = tensors[claim.name], tensors[_indices_of(claim.name)]
        if indices.size and (
            int(indices[-1]) >= claim.size
            or any((part[1:] <= part[:-1]).any() for part in _overlapping(indices))
        ):
            raise ProtocolError(
                f"tensor {claim.name!r} has indices that are not ascending, or beyond its "
                f"{claim.size:,} elements."
            )
        if reference is None:
            result = zeros(claim.spec.shape, claim.dtype)
        else:
            result = empty(claim.spec.shape, claim.dtype)
            np.copyto(result, reference)
        flat = result.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, indices.size, PIECE):
                at = indices[start : start + PIECE]
                flat[at] += values[start : start + PIECE].astype(claim.dtype)
        return result


def _overlapping(indices: Tensor) -> Iterator[Tensor]:
    for start in range(0, indices.size, PIECE):
        yield indices[start : start + PIECE + 1]
