"""Sixteen bits instead of thirty-two or sixty-four."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.errors import ProtocolError
from prefect_federated.filters.blocks import Floats, add_to, changes, pieces
from prefect_federated.filters.claims import Claim
from prefect_federated.filters.encoding import encode
from prefect_federated.filters.feedback import Feedback
from prefect_federated.filters.passage import Passage
from prefect_federated.memory import empty
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors
from prefect_federated.wire import TensorSpec

_DTYPE = {"float16": ("F16", np.dtype("<f2")), "bfloat16": ("U16", np.dtype("<u2"))}


class Cast(BaseModel):
    """Sends float tensors as float16 or bfloat16; they are their own dtype again on arrival.

    Rounded to the nearest, ties to even; NaN and infinity stay what they are. A tensor with a
    finite value beyond the range (65,504 for float16) travels in its own dtype, whole: nothing
    becomes infinite and nothing is clamped. Float64 goes by float32. bfloat16 travels as `U16`.
    Tensors of two bytes an element and tensors that are not floats pass untouched.

    Where the site's model has the tensor, its change is what is cast, so that a small step is not
    lost in the rounding of a large weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "cast"

    to: Literal["float16", "bfloat16"] = Field(description="The dtype on the wire.")
    on: Literal["change", "tensors"] = Field(
        default="change",
        description="Cast the change against the received model where there is one, or the tensors "
        "themselves.",
    )

    @property
    def memory(self) -> None:
        """None: what sixteen bits lose is not fed back."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """The dtype on the wire."""
        return {"to": self.to}

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message with its float tensors in two bytes an element."""
        return encode(self, message, passage)

    def takes(self, tensor: Tensor, is_change: bool) -> bool:
        """Returns whether casting makes the tensor smaller."""
        return tensor.itemsize > 2

    def encoded(
        self, name: str, tensor: Tensor, reference: Tensor | None, feedback: Feedback | None
    ) -> Tensors | None:
        """Returns the tensor in sixteen bits; None if a value is beyond their range."""
        try:
            return {name: _cast(tensor, reference, self.to)}
        except FloatingPointError:
            return None


def _cast(tensor: Tensor, reference: Tensor | None, to: str) -> Tensor:
    result = empty(tensor.shape, _DTYPE[to][1])
    flat = result.reshape(-1)
    for start, piece in changes(tensor, reference, None):
        target = flat[start : start + piece.size]
        if to == "float16":
            with np.errstate(over="raise"):
                target[...] = piece
        else:
            _to_bfloat16(piece, target)
        _refuse_new_infinities(piece, tensor, reference, start)
    return result


def _refuse_new_infinities(
    piece: Floats, tensor: Tensor, reference: Tensor | None, start: int
) -> None:
    """Raises FloatingPointError if taking the difference, or float32, made a value infinite."""
    if reference is None and tensor.dtype == np.float32:
        return
    source = tensor.reshape(-1)[start : start + piece.size]
    if not np.array_equal(np.isfinite(piece), np.isfinite(source)):
        raise FloatingPointError


def _to_bfloat16(piece: Floats, target: NDArray[np.uint16]) -> None:
    """Rounds float32 to the nearest bfloat16, ties to even.

    Raises:
        FloatingPointError: a finite value rounds to infinity.
    """
    bits = piece.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    target[...] = rounded
    special = (target & np.uint16(0x7F80)) == np.uint16(0x7F80)
    special |= (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)  # NaN may have wrapped
    if not special.any():
        return
    source = piece[special]
    if np.isfinite(source).any():
        raise FloatingPointError
    high = (bits[special] >> np.uint32(16)).astype(np.uint16)
    target[special] = np.where(np.isnan(source), high | np.uint16(0x40), high)


class CastDecoder:
    """The way back from sixteen bits; exact."""

    def companions(self, name: str) -> tuple[str, ...]:
        """Returns none."""
        return ()

    def check(self, claim: Claim, specs: Mapping[str, TensorSpec]) -> None:
        """Checks the dtype on the wire."""
        to = claim.options.get("to")
        if not isinstance(to, str) or to not in _DTYPE:
            raise ProtocolError(f"a cast to {str(to)[:40]!r}; known are {', '.join(_DTYPE)}.")
        claim.expect(specs, claim.name, TensorSpec(_DTYPE[to][0], claim.spec.shape))

    def decode(
        self, claim: Claim, tensors: Mapping[str, Tensor], reference: Tensor | None
    ) -> Tensor:
        """Returns the tensor in its own dtype."""
        cast = tensors[claim.name]
        result = empty(claim.spec.shape, claim.dtype)
        base = result if reference is None else reference
        for target, piece, model in pieces(result, cast, base):
            if claim.options["to"] == "bfloat16":
                bits = piece.astype(np.uint32)
                bits <<= np.uint32(16)
                piece = bits.view(np.float32)
            add_to(target, None if reference is None else model, piece)
        return result
