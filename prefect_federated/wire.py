"""How a message looks in bytes: a JSON head with safetensors' tensor table, then its payload.

    message = head frame (JSON: header, tensors, blobs) + data frames (payload in order)

The payload is the tensors' own memory, one after the other, then the blobs. Nothing is copied here:
a sender hands that memory to TLS, a receiver lets TLS write into the memory of its new tensors.
Every length, dtype and shape is checked against `Limits` before anything is allocated. What frames
look like is `frames`' business, and the tensor table's entries are `specs`'.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from prefect_federated.errors import ProtocolError
from prefect_federated.frames import (
    DATA_BYTES,
    DEFAULT_LIMITS,
    PROTOCOL_VERSION,
    START_BYTES,
    Frame,
    Limits,
    body_of,
    control,
    kind_of,
    start,
)
from prefect_federated.memory import empty
from prefect_federated.messages import JsonValue, Message, Tensor
from prefect_federated.specs import (
    DTYPE_OF,
    TensorSpec,
    dtype_name,
    is_count,
    read_spec,
    specs_of,
)

__all__ = [
    "CHUNK_BYTES",
    "DEFAULT_LIMITS",
    "PROTOCOL_VERSION",
    "Encoded",
    "Frame",
    "Incoming",
    "Limits",
    "TensorSpec",
    "begin",
    "body_of",
    "control",
    "encode",
    "kind_of",
    "nowhere",
    "specs_of",
]

CHUNK_BYTES = DATA_BYTES
"""Payload of one data frame at most."""
_SCRATCH_BYTES = 64 << 10


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
    def payload_bytes(self) -> int:
        """Bytes of the payload."""
        return sum(view.nbytes for view in self.payload)

    @property
    def size_bytes(self) -> int:
        """Bytes of head and payload."""
        return len(self.head) + self.payload_bytes

    def headed(self, kind: Frame) -> bytes:
        """Returns the head as a frame of another kind."""
        return start(kind, len(self.head) - START_BYTES) + self.head[START_BYTES:]

    def chunks(self, offset: int = 0) -> Iterator[list[memoryview]]:
        """Yields the payload from a byte on, in chunks: views, together `CHUNK_BYTES` at most.

        Args:
            offset: Bytes at the beginning that the receiver has.
        """
        chunk: list[memoryview] = []
        room = CHUNK_BYTES
        for view in self.payload:
            position = min(offset, view.nbytes)
            offset -= position
            while position < view.nbytes:
                part = view[position : position + room]
                chunk.append(part)
                position += part.nbytes
                room -= part.nbytes
                if room == 0:
                    yield chunk
                    chunk, room = [], CHUNK_BYTES
        if chunk:
            yield chunk


def encode(kind: Frame, message: Message) -> Encoded:
    """Encodes a message; the tensors' memory is referred to, not copied, and must not change.

    Raises:
        ProtocolError: a dtype that does not travel, or a number in the header that is not finite.
    """
    offset = 0
    table: dict[str, JsonValue] = {}
    payload: list[memoryview] = []
    for name, array in message.tensors.items():
        spec = TensorSpec(dtype_name(name, array), array.shape)
        table[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size_bytes],
        }
        offset += spec.size_bytes
        payload.append(_memory_of(array, DTYPE_OF[spec.dtype]))
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


@dataclass
class Incoming:
    """A message whose head has arrived: what it holds, then its payload as the bytes come in.

    One thread fills it: `place` says where the next bytes go, `advance` how many came. Another may
    call `discard` meanwhile; from then on the rest is read to nowhere.
    """

    header: dict[str, JsonValue]
    specs: dict[str, TensorSpec]
    blob_sizes: dict[str, int]
    head: bytes
    received: int = 0
    _tensors: dict[str, Tensor] = field(default_factory=dict)
    _blobs: dict[str, bytearray] = field(default_factory=dict)
    _places: list[memoryview] | None = None  # in reverse order; None: nothing is allocated

    def __post_init__(self) -> None:
        specs = sum(spec.size_bytes for spec in self.specs.values())
        self.payload_bytes = specs + sum(self.blob_sizes.values())
        self._is_discarded = False

    @property
    def size_bytes(self) -> int:
        """Bytes of head and payload."""
        return len(self.head) + self.payload_bytes

    @property
    def is_complete(self) -> bool:
        """Whether all of the payload has arrived, if only to be discarded."""
        return self.received == self.payload_bytes

    @property
    def is_discarded(self) -> bool:
        """Whether the payload is read to nowhere."""
        return self._is_discarded

    def allocate(self) -> None:
        """Makes room for the payload; call it once, when there is room to receive.

        Raises:
            ProtocolError: a shape that no array can have.
            OutOfSpace: there is no room for it.
        """
        places: list[memoryview] = []
        for name, spec in self.specs.items():
            try:
                array = empty(spec.shape, DTYPE_OF[spec.dtype])
            except ValueError as error:
                raise ProtocolError(f"tensor {name!r} of shape {spec.shape}: {error}.") from error
            self._tensors[name] = array
            places.append(_bytes_of(array))
        for name, size in self.blob_sizes.items():
            self._blobs[name] = bytearray(size)
            places.append(memoryview(self._blobs[name]))
        places = [place for place in places if place.nbytes]
        places.reverse()
        self._places = places

    def discard(self) -> None:
        """Reads what is still to come of the payload without keeping any of it."""
        self._is_discarded = True
        self._tensors, self._blobs, self._places = {}, {}, None

    def place(self, limit: int) -> memoryview:
        """Returns where the next bytes go: at most `limit`, at least one if `limit` is.

        Raises:
            ProtocolError: `limit` bytes are more than are missing.
        """
        missing = self.payload_bytes - self.received
        if limit > missing:
            raise ProtocolError(
                f"{limit - missing:,} bytes more than the head announced ({self.payload_bytes:,})."
            )
        places = self._places
        if not places:
            return _scratch[:limit]
        return places[-1][:limit]

    def advance(self, size: int) -> None:
        """Notes that so many bytes have been put in the place."""
        self.received += size
        places = self._places
        if places:
            if size < places[-1].nbytes:
                places[-1] = places[-1][size:]
            elif size:
                places.pop()

    def restarted(self) -> "Incoming":
        """Returns this message without what has arrived of it, to be received anew."""
        return Incoming(self.header, self.specs, self.blob_sizes, self.head)

    def resumed(self) -> "Incoming":
        """Returns this message for another connection to fill from where this one broke.

        They share the memory. What the broken connection may still write does no harm: the bytes
        are the same, and so are their places.
        """
        rest = Incoming(self.header, self.specs, self.blob_sizes, self.head)
        rest._tensors, rest._blobs = self._tensors, self._blobs
        places = [_bytes_of(array) for array in self._tensors.values()]
        places += [memoryview(blob) for blob in self._blobs.values()]
        rest._places = [place for place in reversed(places) if place.nbytes]
        received = self.received
        while rest.received < received:
            rest.advance(min(rest._places[-1].nbytes, received - rest.received))
        return rest

    def message(self) -> Message:
        """Returns the complete message; its arrays are read-only.

        Raises:
            ProtocolError: bytes are missing, or were discarded.
        """
        if not self.is_complete or self._is_discarded:
            raise ProtocolError(
                f"a message ends {self.payload_bytes - self.received:,} bytes short of the "
                f"{self.payload_bytes:,} that its head announced."
                if not self._is_discarded
                else "the message was discarded."
            )
        for array in self._tensors.values():
            array.flags.writeable = False
        blobs = {name: bytes(blob) for name, blob in self._blobs.items()}
        return Message(self.header, self._tensors, blobs)


def nowhere(limits: Limits = DEFAULT_LIMITS) -> Incoming:
    """Returns a place for the payload of a message that is not known any more: it is not kept."""
    incoming = Incoming({}, {}, {"": limits.message_bytes}, b"")
    incoming.discard()
    return incoming


_scratch = memoryview(bytearray(_SCRATCH_BYTES))  # where discarded bytes go; nobody reads it


def begin(frame: bytes | bytearray, limits: Limits = DEFAULT_LIMITS) -> Incoming:
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
        specs[name] = read_spec(name, entry, offset, limits)
        offset += specs[name].size_bytes
    sizes: dict[str, int] = {}
    for name, size in blobs.items():
        if not is_count(size):
            raise ProtocolError(f"blob {name!r} claims the size {size!r}.")
        sizes[name] = cast(int, size)
    incoming = Incoming(header, specs, sizes, bytes(frame))
    if incoming.payload_bytes > limits.message_bytes:
        raise ProtocolError(
            f"a message claims {incoming.payload_bytes:,} bytes; the limit is "
            f"{limits.message_bytes:,} (setting PREFECT_FEDERATED_MAX_MESSAGE_BYTES)."
        )
    return incoming
