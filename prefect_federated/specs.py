"""What is known of a tensor without its values: dtype and shape, in memory and in a message's head.

Source for the dtypes' names and the table's entries: the safetensors format,
https://github.com/huggingface/safetensors
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np

from prefect_federated.errors import ProtocolError
from prefect_federated.frames import Limits
from prefect_federated.messages import JsonValue, Tensor, Tensors

_DTYPES = {
    "BOOL": "bool", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
    "C64": "<c8",
}  # fmt: skip
DTYPE_OF = {name: np.dtype(code) for name, code in _DTYPES.items()}
"""safetensors' name -> dtype, little endian."""
_NAME_OF = {dtype: name for name, dtype in DTYPE_OF.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's dtype (safetensors' name) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's memory."""
        return math.prod(self.shape) * DTYPE_OF[self.dtype].itemsize


def specs_of(tensors: Tensors) -> dict[str, TensorSpec]:
    """Returns name -> dtype and shape.

    Raises:
        ProtocolError: a dtype that does not travel (object, string, datetime, ...).
    """
    return {
        name: TensorSpec(dtype_name(name, array), array.shape) for name, array in tensors.items()
    }


def dtype_name(name: str, array: Tensor) -> str:
    """Returns safetensors' name of the dtype of the array called `name`.

    Raises:
        ProtocolError: a dtype that does not travel.
    """
    found = _NAME_OF.get(array.dtype.newbyteorder("<"))
    if found is None:
        raise ProtocolError(
            f"tensor {name!r} has dtype {array.dtype}, which does not travel; convert it to one of "
            f"{', '.join(str(dtype) for dtype in _NAME_OF)}."
        )
    return found


def read_spec(name: str, entry: JsonValue, offset: int, limits: Limits) -> TensorSpec:
    """Returns one entry of a tensor table, checked.

    Args:
        name: The tensor's name.
        entry: What the table says of it.
        offset: Byte of the payload at which its memory must begin.
        limits: What is accepted at most.

    Raises:
        ProtocolError: the entry is not one, or contradicts itself.
    """
    if not isinstance(entry, dict):
        raise ProtocolError(f"tensor {name!r} has no table entry.")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_OF:
        raise ProtocolError(f"tensor {name!r} has the unknown dtype {dtype!r}.")
    if (
        not isinstance(shape, list)
        or len(shape) > limits.dimensions
        or not all(is_count(length) for length in shape)
    ):
        raise ProtocolError(f"tensor {name!r} has the impossible shape {str(shape)[:80]}.")
    spec = TensorSpec(dtype, tuple(cast(list[int], shape)))
    if span != [offset, offset + spec.size_bytes]:
        raise ProtocolError(
            f"tensor {name!r} claims bytes {str(span)[:80]}, but its dtype and shape take "
            f"{spec.size_bytes:,} from {offset:,}."
        )
    return spec


def is_count(value: JsonValue) -> bool:
    """Whether a value is a whole number that can count bytes or elements."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
