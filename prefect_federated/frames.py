"""What travels on a job's connection: frames of one kind each, and JSON in most of them.

    frame = kind (1 byte) + length of the body (4 bytes, big endian) + body

Who sends a kind, and what its body says, stands beside it in `Frame`. A reader checks the length
with `read_start` before it makes room for a single byte.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from prefect_federated.errors import ProtocolError
from prefect_federated.messages import JsonValue

PROTOCOL_VERSION = 3
START_BYTES = 5
"""Bytes of a frame before its body."""
DATA_BYTES = (1 << 18) - START_BYTES
"""Body of a data frame at most: with the frame's start, 16 full records of TLS."""
CONTROL_BYTES = 1 << 20
"""Body of a frame at most that is neither data, nor notes, nor a message's head."""
NOTES_BYTES = 256 << 10
"""Body of a frame of notes at most."""

_START = struct.Struct(">cI")


class Frame(bytes, Enum):
    """What a frame is, by its first byte; after each, who sends it and what its body says."""

    HELLO = b"H"  # site: protocol, job, epoch, kinds, labels, holding, receiving
    WELCOME = b"W"  # server: epoch, wanted
    TASK = b"T"  # server: a message's head; its payload follows at once
    OFFER = b"O"  # site: a message's head; its payload waits for GO
    UPDATE = b"U"  # site: a message's head; its small payload follows at once
    NOTES = b"L"  # site: id, notes, dropped; what it says while it works on that task
    PAYLOAD = b"P"  # both: id, offset; the payload of a head that the peer has follows
    DATA = b"D"  # both: bytes of the payload begun last
    GO = b"G"  # server: id, offset; send the payload of that offer from there
    ACK = b"A"  # server: id, rejected
    CLOSE = b"C"  # server: id, reason
    NOTICE = b"N"  # server: reason
    HEARTBEAT = b"B"  # both
    END = b"E"  # server: outcome, reason


HEADS = frozenset({Frame.TASK, Frame.OFFER, Frame.UPDATE})
"""Frames whose body is a message's head."""


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


def control(kind: Frame, body: Mapping[str, object] | None = None) -> bytes:
    """Returns a frame whose body is JSON.

    Raises:
        ProtocolError: a number that is not finite, or a value that is not JSON.
    """
    if body is None:
        return start(kind, 0)
    try:
        encoded = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"a header holds what JSON cannot carry: {error}.") from error
    return start(kind, len(encoded)) + encoded


def start(kind: Frame, length: int) -> bytes:
    """Returns a frame's first bytes: its kind, and the length of its body in bytes."""
    return _START.pack(kind.value, length)


def read_start(first: bytes | bytearray, limits: Limits = DEFAULT_LIMITS) -> tuple[Frame, int]:
    """Returns a frame's kind and the length of its body, from its first `START_BYTES` bytes.

    Raises:
        ProtocolError: an unknown kind, or a body beyond what frames of this kind may have.
    """
    kind = kind_of(first)
    length: int = _START.unpack_from(first)[1]
    longest = CONTROL_BYTES
    if kind is Frame.DATA:
        longest = DATA_BYTES
    elif kind is Frame.NOTES:
        longest = NOTES_BYTES
    elif kind in HEADS:
        longest = limits.head_bytes
    if length > longest:
        raise ProtocolError(
            f"a frame of kind {kind.name} announces {length:,} bytes; the limit is {longest:,}."
        )
    return kind, length


def kind_of(frame: bytes | bytearray) -> Frame:
    """Returns what a frame is.

    Raises:
        ProtocolError: empty, or an unknown kind.
    """
    try:
        return Frame(bytes(frame[:1]))
    except ValueError:
        raise ProtocolError(
            f"frame of unknown kind {bytes(frame[:1])!r}; the peer does not speak protocol version "
            f"{PROTOCOL_VERSION}."
        ) from None


def body_of(frame: bytes | bytearray, limits: Limits = DEFAULT_LIMITS) -> dict[str, JsonValue]:
    """Returns the JSON body of a whole frame, other than a data frame.

    Raises:
        ProtocolError: too long or cut short, not JSON, not an object, or with a number that is not
            finite.
    """
    body = memoryview(frame)[START_BYTES:]
    if len(frame) < START_BYTES or read_start(frame[:START_BYTES], limits)[1] != len(body):
        raise ProtocolError(f"a frame of {len(frame):,} bytes is not as long as it says.")
    if not body:
        return {}
    try:
        read = json.loads(bytes(body), parse_float=_finite_float, parse_constant=_finite_float)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame's body is not JSON: {error}.") from error
    if not isinstance(read, dict):
        raise ProtocolError(f"a frame's body is {type(read).__name__}, not an object.")
    return read


def position_of(frame: bytes) -> tuple[str, int]:
    """Returns the `id` and the `offset` that a PAYLOAD or GO frame names.

    Raises:
        ProtocolError: it names none.
    """
    body = body_of(frame)
    task, offset = body.get("id"), body.get("offset")
    if not isinstance(task, str) or isinstance(offset, bool) or not isinstance(offset, int):
        raise ProtocolError("a frame that names a payload must have `id` and `offset`.")
    return task, offset


def _finite_float(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token[:40]} is not a finite number")
    return value
