"""How a message looks in bytes: a JSON head with safetensors' tensor table, then chunks of payload.

    frame   = kind (1 byte) + body
    message = head frame (JSON: header, tensors, blobs) + data frames (payload in order, <= 1 MiB)

The payload is the tensors' own memory, one after the other, then the blobs. Sending copies each
byte once (into the chunk that the transport takes), receiving once (from the chunk into place).
Every length, dtype and shape is checked against `Limits` before anything is allocated.

Source for the table's form and dtype names: the safetensors format,
https://github.com/huggingface/safetensors
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

import numpy as np

from prefect_federated.errors import ProtocolError
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors

PROTOCOL_VERSION = 1
CHUNK_BYTES = 1 << 20

_DTYPES = {
    "BOOL": "bool", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
    "C64": "<c8",
}  # fmt: skip
_DTYPE_OF = {name: np.dtype(code) for name, code in _DTYPES.items()}
_NAME_OF = {dtype: name for name, dtype in _DTYPE_OF.items()}


class Frame(bytes, Enum):
    """What a frame is, by its first byte."""

    HELLO = b"H"
    WELCOME = b"W"
    TASK = b"T"
    UPDATE = b"U"
    DATA = b"D"
    ACK = b"A"
    CLOSE = b"C"
    HEARTBEAT = b"B"
    END = b"E"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder accepts at most.

    Args:
        message_bytes: Payload of one message, in bytes.
        head_bytes: JSON head of one message, in bytes.
        tensors: Tensors and blobs of one message.
        dimensions: Dimensions of one tensor.
    """

    message_bytes: int = 16 << 30
    head_bytes: int = 16 << 20
    tensors: int = 100_000
    dimensions: int = 16


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's dtype (safetensors' name) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's memory."""
        return math.prod(self.shape) * _DTYPE_OF[self.dtype].itemsize


def specs_of(tensors: Tensors) -> dict[str, TensorSpec]:
    """Returns name -> dtype and shape.

    Raises:
        ProtocolError: a dtype that does not travel (object, string, datetime, ...).
    """
    return {
        name: TensorSpec(_dtype_name(name, array), array.shape) for name, array in tensors.items()
    }


def _dtype_name(name: str, array: Tensor) -> str:
    found = _NAME_OF.get(array.dtype.newbyteorder("<"))
    if found is None:
        raise ProtocolError(
            f"tensor {name!r} has dtype {array.dtype}, which does not travel; convert it to one of "
            f"{', '.join(str(dtype) for dtype in _NAME_OF)}."
        )
    return found


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message ready to send, encoded once for any number of receivers.

    Args:
        head: The head frame.
        payload: Views of the tensors' and blobs' own memory, in order.
    """

    head: bytes
    payload: tuple[memoryview, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of head and payload."""
        return len(self.head) + sum(view.nbytes for view in self.payload)

    def frames(self) -> Iterator[bytes]:
        """Yields the head, then the payload in data frames of at most 1 MiB."""
        yield self.head
        parts: list[memoryview | bytes] = [Frame.DATA.value]
        room = CHUNK_BYTES
        for view in self.payload:
            start = 0
            while start < view.nbytes:
                part = view[start : start + room]
                parts.append(part)
                start += part.nbytes
                room -= part.nbytes
                if room == 0:
                    yield b"".join(parts)
                    parts, room = [Frame.DATA.value], CHUNK_BYTES
        if len(parts) > 1:
            yield b"".join(parts)


def encode(kind: Frame, message: Message) -> Encoded:
    """Encodes a message; the tensors' memory is referred to, not copied, and must not change.

    Raises:
        ProtocolError: a dtype that does not travel, or a number in the header that is not finite.
    """
    offset = 0
    table: dict[str, JsonValue] = {}
    payload: list[memoryview] = []
    for name, array in message.tensors.items():
        spec = TensorSpec(_dtype_name(name, array), array.shape)
        table[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size_bytes],
        }
        offset += spec.size_bytes
        payload.append(_memory_of(array, _DTYPE_OF[spec.dtype]))
    payload += [memoryview(blob) for blob in message.blobs.values()]
    head = {
        "header": dict(message.header),
        "tensors": table,
        "blobs": {name: len(blob) for name, blob in message.blobs.items()},
    }
    return Encoded(control(kind, head), tuple(payload))


def _memory_of(array: Tensor, dtype: np.dtype[np.generic]) -> memoryview:
    plain = array.astype(dtype, copy=False)
    if not plain.flags.c_contiguous:
        plain = plain.copy(order="C")
    return _bytes_of(plain)


def _bytes_of(array: Tensor) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def control(kind: Frame, body: Mapping[str, object] | None = None) -> bytes:
    """Returns a frame whose body is JSON.

    Raises:
        ProtocolError: a number that is not finite, or a value that is not JSON.
    """
    if body is None:
        return kind.value
    try:
        return kind.value + json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"a header holds what JSON cannot carry: {error}.") from error


def kind_of(frame: bytes) -> Frame:
    """Returns what a frame is.

    Raises:
        ProtocolError: empty, or an unknown kind.
    """
    try:
        return Frame(frame[:1])
    except ValueError:
        raise ProtocolError(
            f"frame of unknown kind {frame[:1]!r} ({len(frame)} bytes); the peer does not speak "
            f"protocol version {PROTOCOL_VERSION}."
        ) from None


def body_of(frame: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, JsonValue]:
    """Returns the JSON body of a control or head frame.

    Raises:
        ProtocolError: too long, not JSON, not an object, or with a number that is not finite.
    """
    if len(frame) > limits.head_bytes:
        raise ProtocolError(f"a head of {len(frame):,} bytes; the limit is {limits.head_bytes:,}.")
    try:
        body = json.loads(
            frame[1:] or b"{}", parse_float=_finite_float, parse_constant=_finite_float
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame's body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise ProtocolError(f"a frame's body is {type(body).__name__}, not an object.")
    return body


def _finite_float(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token[:40]} is not a finite number")
    return value


@dataclass
class Incoming:
    """A message whose head has arrived: what it holds, then its payload as the chunks come in."""

    header: dict[str, JsonValue]
    specs: dict[str, TensorSpec]
    blob_sizes: dict[str, int]
    head_bytes: int
    _tensors: dict[str, Tensor] = field(default_factory=dict)
    _blobs: dict[str, bytearray] = field(default_factory=dict)
    _places: list[memoryview] = field(default_factory=list)
    _missing: int = -1
    _discarding: bool = False

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow the head."""
        specs = sum(spec.size_bytes for spec in self.specs.values())
        return specs + sum(self.blob_sizes.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of head and payload."""
        return self.head_bytes + self.payload_bytes

    def allocate(self) -> None:
        """Makes room for the payload; call it once, when there is room to receive.

        Raises:
            ProtocolError: a shape that no array can have, or no memory for it.
        """
        for name, spec in self.specs.items():
            try:
                array = np.empty(spec.shape, _DTYPE_OF[spec.dtype])
            except (ValueError, MemoryError) as error:
                raise ProtocolError(f"tensor {name!r} of shape {spec.shape}: {error}.") from error
            self._tensors[name] = array
            self._places.append(_bytes_of(array))
        for name, size in self.blob_sizes.items():
            self._blobs[name] = bytearray(size)
            self._places.append(memoryview(self._blobs[name]))
        self._places.reverse()
        self._missing = self.payload_bytes

    def discard(self) -> None:
        """Reads what is still to come of the payload without keeping any of it."""
        if self._missing < 0:
            self._missing = self.payload_bytes
        self._discarding = True
        self._tensors, self._blobs, self._places = {}, {}, []

    def feed(self, frame: bytes) -> None:
        """Puts a data frame's bytes in place.

        Raises:
            ProtocolError: more bytes than the head announced.
        """
        chunk = memoryview(frame)[1:]
        if chunk.nbytes > self._missing:
            raise ProtocolError(
                f"{chunk.nbytes - self._missing:,} bytes more than the head announced "
                f"({self.payload_bytes:,})."
            )
        self._missing -= chunk.nbytes
        if self._discarding:
            return
        while chunk.nbytes:
            place = self._places.pop()
            part = min(place.nbytes, chunk.nbytes)
            place[:part] = chunk[:part]
            if part < place.nbytes:
                self._places.append(place[part:])
            chunk = chunk[part:]

    @property
    def is_complete(self) -> bool:
        """Whether all of the payload has arrived."""
        return self._missing == 0

    def message(self) -> Message:
        """Returns the complete message; its arrays are read-only.

        Raises:
            ProtocolError: bytes are missing.
        """
        if not self.is_complete:
            raise ProtocolError(
                f"a message ends {self._missing:,} bytes short of the {self.payload_bytes:,} that "
                "its head announced."
            )
        for array in self._tensors.values():
            array.flags.writeable = False
        blobs = {name: bytes(blob) for name, blob in self._blobs.items()}
        return Message(self.header, self._tensors, blobs)


def begin(frame: bytes, limits: Limits = DEFAULT_LIMITS) -> Incoming:
    """Reads a message's head and checks all it claims against the limits; allocates nothing.

    Raises:
        ProtocolError: not a head, or beyond a limit.
    """
    head = body_of(frame, limits)
    header, table, blobs = head.get("header"), head.get("tensors"), head.get("blobs")
    if not (isinstance(header, dict) and isinstance(table, dict) and isinstance(blobs, dict)):
        raise ProtocolError("a message's head lacks `header`, `tensors` or `blobs`.")
    if len(table) + len(blobs) > limits.tensors:
        raise ProtocolError(
            f"a message of {len(table) + len(blobs):,} tensors; the limit is {limits.tensors:,}."
        )
    specs: dict[str, TensorSpec] = {}
    offset = 0
    for name, entry in table.items():
        specs[name] = _read_spec(name, entry, offset, limits)
        offset += specs[name].size_bytes
    sizes: dict[str, int] = {}
    for name, size in blobs.items():
        if not _is_count(size):
            raise ProtocolError(f"blob {name!r} claims the size {size!r}.")
        sizes[name] = cast(int, size)
    incoming = Incoming(header, specs, sizes, len(frame))
    if incoming.payload_bytes > limits.message_bytes:
        raise ProtocolError(
            f"a message claims {incoming.payload_bytes:,} bytes; the limit is "
            f"{limits.message_bytes:,} (setting PREFECT_FEDERATED_MAX_MESSAGE_BYTES)."
        )
    return incoming


def _read_spec(name: str, entry: JsonValue, offset: int, limits: Limits) -> TensorSpec:
    if not isinstance(entry, dict):
        raise ProtocolError(f"tensor {name!r} has no table entry.")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_OF:
        raise ProtocolError(f"tensor {name!r} has the unknown dtype {dtype!r}.")
    if (
        not isinstance(shape, list)
        or len(shape) > limits.dimensions
        or not all(_is_count(length) for length in shape)
    ):
        raise ProtocolError(f"tensor {name!r} has the impossible shape {str(shape)[:80]}.")
    spec = TensorSpec(dtype, tuple(cast(list[int], shape)))
    if span != [offset, offset + spec.size_bytes]:
        raise ProtocolError(
            f"tensor {name!r} claims bytes {str(span)[:80]}, but its dtype and shape take "
            f"{spec.size_bytes:,} from {offset:,}."
        )
    return spec


def _is_count(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
