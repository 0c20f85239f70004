"""What a header says of encodings, and how much of it is believed.

    header["encodings"] = [{"encoding": "int8", "options": {...},
                            "tensors": {name: [dtype, shape, is_change]}}, ...]

in the order applied: for each tensor its dtype and shape before that encoding, and whether it holds
the change against the receiver's model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prefect_federated.errors import ProtocolError
from prefect_federated.messages import JsonValue, Tensor
from prefect_federated.wire import Limits, TensorSpec

_DEPTH = 4  # encodings of one message at most
_FLOATS: Mapping[str, np.dtype[np.floating[Any]]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a header says of one encoded tensor.

    Args:
        name: The tensor's name.
        spec: Its dtype and shape before it was encoded.
        is_change: Whether it holds the change against the model, not the tensor itself.
        options: The encoding's own numbers and words, for all its tensors.
    """

    name: str
    spec: TensorSpec
    is_change: bool
    options: Mapping[str, JsonValue]

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """The tensor's dtype before it was encoded."""
        return _FLOATS[self.spec.dtype]

    @property
    def size(self) -> int:
        """Elements of the tensor before it was encoded."""
        return math.prod(self.spec.shape)

    def expect(self, specs: Mapping[str, TensorSpec], name: str, spec: TensorSpec) -> None:
        """Checks that an encoded tensor is there in the form that this claim needs.

        Raises:
            ProtocolError: it is missing, or of another dtype or shape.
        """
        found = specs.get(name)
        if found != spec:
            there = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ProtocolError(
                f"tensor {name!r} is {there}; to be decoded to {self.spec.dtype} "
                f"{str(self.spec.shape)[:80]} it must be {spec.dtype} {str(spec.shape)[:80]}."
            )


class Decoder(Protocol):
    """One encoding's way back."""

    def companions(self, name: str) -> tuple[str, ...]:
        """Returns the names of further tensors that belong to an encoded one."""
        ...

    def check(self, claim: Claim, specs: Mapping[str, TensorSpec]) -> None:
        """Checks a claim against the dtypes and shapes of the tensors that came.

        Raises:
            ProtocolError: they do not fit, or an option is not what it must be.
        """
        ...

    def decode(
        self, claim: Claim, tensors: Mapping[str, Tensor], reference: Tensor | None
    ) -> Tensor:
        """Returns a decoded tensor; the claim has been checked.

        Raises:
            ProtocolError: values that the encoding cannot have written.
        """
        ...


def encodings_of(header: Mapping[str, JsonValue]) -> list[JsonValue]:
    """Returns a header's entries of encodings, in the order applied; they may be a peer's.

    Raises:
        ProtocolError: not a list, or too many.
    """
    entries = header.get("encodings", [])
    if not isinstance(entries, list) or len(entries) > _DEPTH:
        raise ProtocolError(
            f"a message's encodings are {str(entries)[:80]}; at most {_DEPTH} in a list are taken."
        )
    return entries


def claim_of(
    name: str, value: JsonValue, options: Mapping[str, JsonValue], limits: Limits
) -> Claim:
    """Reads what an entry says of one tensor.

    Raises:
        ProtocolError: it says nothing that could be, or exceeds a limit.
    """
    match value:
        case [str(dtype), list(shape), bool(is_change)] if dtype in _FLOATS:
            lengths = [length for length in shape if _is_count(length)]
            if len(lengths) == len(shape) <= limits.dimensions:
                spec = TensorSpec(dtype, tuple(int(str(length)) for length in lengths))
                size = math.prod(max(length, 1) for length in spec.shape)
                if size * _FLOATS[dtype].itemsize <= limits.message_bytes:
                    return Claim(name, spec, is_change, options)
    raise ProtocolError(
        f"tensor {name[:80]!r} is claimed to be {str(value)[:80]} before its encoding; expected "
        f"[one of {', '.join(_FLOATS)}, shape, is it a change], at most {limits.message_bytes:,} "
        f"bytes in {limits.dimensions} dimensions."
    )


def _is_count(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
