"""UBJSON as XGBoost writes it: arrays of one type are ndarrays, so that a tree is read at once.

Not for other files: what XGBoost never writes (no-ops, containers without a count) is refused.
Source: Universal Binary JSON, draft 12, with XGBoost's counts of 64 bits.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import ProtocolError

Value: TypeAlias = (
    "bool | int | float | str | list[Value] | dict[str, Value] | NDArray[np.generic] | None"
)

_TYPES = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_LETTERS = {np.dtype(name).newbyteorder("="): letter for letter, name in _TYPES.items()}
_DEPTH = 64


def read(content: bytes) -> Value:
    """Returns the value in `content`.

    Raises:
        ProtocolError: it is not UBJSON as XGBoost writes it.
    """
    try:
        value, end = _value(content, 0, 0)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise ProtocolError(
            f"{len(content)} bytes are not a model that XGBoost has written as UBJSON."
        ) from error
    if end != len(content):
        raise ProtocolError(f"{len(content) - end} bytes follow the end of a model.")
    return value


def write(value: "Value | Mapping[str, Value] | Sequence[Value]") -> bytes:
    """Returns a value as UBJSON; integers take 64 bits.

    >>> read(write({"id": 3, "left_children": np.array([1, -1], np.int32)}))
    {'id': 3, 'left_children': array([ 1, -1], dtype=int32)}
    """
    if value is None:
        return b"Z"
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        return b"L" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"S" + _text(value)
    if isinstance(value, np.ndarray):
        letter = _LETTERS[value.dtype]
        return b"[$" + letter + b"#" + _count(value.size) + value.astype(_TYPES[letter]).tobytes()
    if isinstance(value, Mapping):
        inside = b"".join(_text(key) + write(each) for key, each in value.items())
        return b"{" + inside + b"}"
    return listed([write(each) for each in value])


def listed(values: Sequence[bytes]) -> bytes:
    """Returns the array of values that are UBJSON already."""
    return b"[#" + _count(len(values)) + b"".join(values)


def _count(number: int) -> bytes:
    return b"L" + struct.pack(">q", number)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _count(len(encoded)) + encoded


def _number(content: bytes, at: int) -> tuple[int, int]:
    """Returns the length that stands at a place, and where it ends."""
    value, end = _value(content, at, _DEPTH)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= len(content):
        raise ValueError("no length")
    return value, end


def _string(content: bytes, at: int) -> tuple[str, int]:
    size, at = _number(content, at)
    if at + size > len(content):
        raise ValueError("cut off")
    return content[at : at + size].decode(), at + size


def _value(content: bytes, at: int, depth: int) -> tuple[Value, int]:
    mark, at = content[at : at + 1], at + 1
    if mark in _TYPES:
        dtype = np.dtype(_TYPES[mark])
        found = np.frombuffer(content, dtype, 1, at)[0]
        return found.item(), at + dtype.itemsize
    if mark == b"S":
        return _string(content, at)
    if mark in (b"T", b"F", b"Z"):
        return {b"T": True, b"F": False, b"Z": None}[mark], at
    if depth >= _DEPTH:
        raise ValueError("too deep")
    return _object(content, at, depth) if mark == b"{" else _array(content, at, depth, mark)


def _object(content: bytes, at: int, depth: int) -> tuple[Value, int]:
    found: dict[str, Value] = {}
    while content[at] != ord("}"):
        key, at = _string(content, at)
        found[key], at = _value(content, at, depth + 1)
    return found, at + 1


def _array(content: bytes, at: int, depth: int, mark: bytes) -> tuple[Value, int]:
    if mark != b"[":
        raise ValueError("unknown type")
    if content[at : at + 1] == b"$":
        dtype = np.dtype(_TYPES[content[at + 1 : at + 2]])
        if content[at + 2 : at + 3] != b"#":
            raise ValueError("no count")
        size, at = _number(content, at + 3)
        array = np.frombuffer(content, dtype, size, at).astype(dtype.newbyteorder("="))
        return array, at + size * dtype.itemsize
    if content[at : at + 1] != b"#":
        raise ValueError("no count")
    size, at = _number(content, at + 1)
    items: list[Value] = []
    for _ in range(size):
        item, at = _value(content, at, depth + 1)
        items.append(item)
    return items, at
