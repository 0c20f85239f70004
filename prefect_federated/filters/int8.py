"""One byte an element, with a scale for each block of elements, and error feedback."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from prefect_federated.errors import ProtocolError
from prefect_federated.filters.blocks import PIECE, Floats, add_to, changes
from prefect_federated.filters.claims import Claim
from prefect_federated.filters.encoding import encode
from prefect_federated.filters.feedback import Feedback, Memory
from prefect_federated.filters.passage import Passage
from prefect_federated.memory import empty
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors
from prefect_federated.wire import TensorSpec

_SMALLEST_BLOCK = 16
_LARGEST_BLOCK = PIECE
_TINY = np.finfo(np.float32).tiny


class Int8(BaseModel):
    """Sends float tensors as int8 times a scale, and in the next round what rounding took.

    Each block of `block` elements has the scale max|x| / 127, float32, and each element becomes
    round(x / scale), off by at most max|x| / 254. x is the change against the site's model where
    that has the tensor, and the tensor itself otherwise. On the wire a tensor is one of dtype `U8`:
    the scales, then the elements.

    Error feedback works where a site sends: what rounding took from a tensor is kept there and
    added in the next round (the module `feedback` has the arithmetic). A tensor that holds a NaN or
    an infinity fails.

    Why blocks: an outlier sets the scale of its own block only. Measured over 2**20 elements, root
    mean square error over that of the elements, one scale for all and blocks of 1,024: normal 1.1 %
    and 0.8 %, Laplace 2.5 % and 1.2 %, Student's t with 3 degrees of freedom 21 % and 2.9 %; for
    0.4 % more bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "int8"

    block: int = Field(
        default=1024,
        ge=_SMALLEST_BLOCK,
        le=_LARGEST_BLOCK,
        description="Elements that share a scale.",
    )
    on: Literal["change", "tensors"] = Field(
        default="change",
        description="Quantize the change against the received model where there is one, or the "
        "tensors themselves.",
    )
    feedback: bool = Field(
        default=True, description="Add to the next round what rounding took from this one."
    )
    min_elements: int = Field(
        default=256, ge=1, description="Tensors of fewer elements travel as they are."
    )
    _memory: Memory = PrivateAttr(default_factory=Memory)

    @property
    def memory(self) -> Memory | None:
        """Where residuals are kept without a state folder; None without feedback."""
        return self._memory if self.feedback else None

    @property
    def options(self) -> dict[str, JsonValue]:
        """The elements that share a scale."""
        return {"block": self.block}

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message with its float tensors in about one byte an element.

        Raises:
            ValueError: a tensor holds a NaN or an infinity.
        """
        return encode(self, message, passage)

    def takes(self, tensor: Tensor, is_change: bool) -> bool:
        """Returns whether the tensor is large enough."""
        return tensor.size >= self.min_elements

    def encoded(
        self, name: str, tensor: Tensor, reference: Tensor | None, feedback: Feedback | None
    ) -> Tensors:
        """Returns the tensor as `U8`: scales, then elements."""
        scales_bytes = _scales(tensor.size, self.block) * 4
        result = empty((scales_bytes + tensor.size,), np.uint8)
        scales = result[:scales_bytes].view("<f4")
        elements = result[scales_bytes:].view(np.int8)
        residual = None if feedback is None else feedback.before(name)
        size = PIECE // self.block * self.block
        for start, piece in changes(tensor, reference, residual, size):
            first = start // self.block
            try:
                _quantize(
                    piece,
                    scales[first : first + _scales(piece.size, self.block)],
                    elements[start : start + piece.size],
                    self.block,
                )
            except FloatingPointError:
                raise ValueError(f"tensor {name!r} holds NaN or infinity") from None
            if feedback is not None:
                feedback.keep(piece)
        return {name: result}


def _scales(size: int, block: int) -> int:
    return -(-size // block)


def _quantize(piece: Floats, scales: Floats, elements: NDArray[np.int8], block: int) -> None:
    """Writes a piece's scales and elements, and leaves in the piece what rounding took.

    Raises:
        FloatingPointError: a NaN or an infinity.
    """
    for rows, scale, target in _rows(piece, scales, elements, block):
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        if not np.isfinite(largest).all():
            raise FloatingPointError
        np.divide(largest, np.float32(127), out=scale)
        scale[scale < _TINY] = 0  # its inverse may not be finite; the residual keeps such elements
        inverse = np.zeros_like(largest)
        np.divide(np.float32(1), scale, out=inverse, where=scale > 0)
        rounded = rows * inverse[:, None]
        np.rint(rounded, out=rounded)
        np.copyto(target, rounded, casting="unsafe")
        rounded *= scale[:, None]
        rows -= rounded


def _rows(
    piece: Tensor, scales: Floats, elements: Tensor, block: int
) -> list[tuple[Floats, Floats, Tensor]]:
    """Returns matching parts of the three with a row for each block: the whole ones, the rest."""
    whole = piece.size // block
    end = whole * block
    parts = []
    if whole:
        parts.append(
            (piece[:end].reshape(-1, block), scales[:whole], elements[:end].reshape(-1, block))
        )
    if end < piece.size:
        parts.append((piece[None, end:], scales[whole:], elements[None, end:]))
    return parts


class Int8Decoder:
    """The way back from int8: element times scale, added to the model's tensor."""

    def companions(self, name: str) -> tuple[str, ...]:
        """Returns none."""
        return ()

    def check(self, claim: Claim, specs: Mapping[str, TensorSpec]) -> None:
        """Checks the block and that there is a byte for each element and a scale for each block."""
        size = _scales(claim.size, _block(claim)) * 4 + claim.size
        claim.expect(specs, claim.name, TensorSpec("U8", (size,)))

    def decode(
        self, claim: Claim, tensors: Mapping[str, Tensor], reference: Tensor | None
    ) -> Tensor:
        """Returns the tensor in its own dtype and shape."""
        encoded, block = tensors[claim.name].reshape(-1), _block(claim)
        scales_bytes = _scales(claim.size, block) * 4
        scales = encoded[:scales_bytes].view("<f4")
        elements = encoded[scales_bytes:].view(np.int8)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise ProtocolError(f"tensor {claim.name!r} has scales that are not finite numbers.")
        result = empty(claim.spec.shape, claim.dtype)
        flat = result.reshape(-1)
        base = None if reference is None else reference.reshape(-1)
        size = PIECE // block * block
        buffer = np.empty(min(size, flat.size), np.float32)
        for start in range(0, flat.size, size):
            source = elements[start : start + size]
            piece = buffer[: source.size]
            first = start // block
            scale = scales[first : first + _scales(source.size, block)]
            for rows, factor, values in _rows(piece, scale, source, block):
                with np.errstate(over="ignore"):
                    np.multiply(values, factor[:, None], out=rows)
            model = None if base is None else base[start : start + size]
            add_to(flat[start : start + size], model, piece)
        return result


def _block(claim: Claim) -> int:
    block = claim.options.get("block")
    if (
        not isinstance(block, int)
        or isinstance(block, bool)
        or not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK
    ):
        raise ProtocolError(
            f"int8 with blocks of {str(block)[:40]} elements; {_SMALLEST_BLOCK} to "
            f"{_LARGEST_BLOCK} are taken."
        )
    return block
