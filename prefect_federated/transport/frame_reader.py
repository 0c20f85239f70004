"""Frames out of a stream of bytes, however it is cut: says where the next bytes go, and hands over.

It does no I/O. Payload goes straight into its message's own memory; any other frame into a buffer
that grows as its bytes arrive, never to what a peer merely announces.
"""

from typing import Protocol

from prefect_federated.errors import ProtocolError
from prefect_federated.frames import (
    DEFAULT_LIMITS,
    START_BYTES,
    Frame,
    Limits,
    read_start,
)
from prefect_federated.wire import Incoming

_FIRST_ROOM_BYTES = 4 << 10
_BEGINS = frozenset({Frame.TASK, Frame.UPDATE, Frame.PAYLOAD})


class Receiver(Protocol):
    """Who takes what arrives; called in its order, and must not block."""

    def begin(self, kind: Frame, frame: bytes) -> Incoming:
        """Returns the message whose payload follows a TASK, UPDATE or PAYLOAD frame."""
        ...

    def control(self, kind: Frame, frame: bytes) -> None:
        """Takes any other frame but data."""
        ...

    def complete(self, incoming: Incoming) -> None:
        """Takes a message whose payload is there whole."""
        ...


class FrameReader:
    """Reads the frames of one connection.

    Args:
        receiver: Who takes them.
        limits: What a message may hold at most.
    """

    def __init__(self, receiver: Receiver, limits: Limits = DEFAULT_LIMITS) -> None:
        self._receiver = receiver
        self._limits = limits
        self._incoming: Incoming | None = None  # whose payload comes
        self._data_left = 0  # bytes of the data frame at hand
        self._expect_start()

    def place(self) -> memoryview:
        """Returns where the next bytes go, at least one; write there, then call `advance`."""
        if self._data_left and self._incoming is not None:
            return self._incoming.place(self._data_left)
        return memoryview(self._buffer)[self._filled :]

    def advance(self, size: int) -> None:
        """Takes as many bytes as have been put in the place.

        Raises:
            ProtocolError: what arrived is not a frame, or not one that may come now.
            FederatedError: what the receiver raised.
        """
        if self._data_left and self._incoming is not None:
            self._incoming.advance(size)
            self._data_left -= size
            if not self._data_left:
                self._hand_over_if_complete()
            return
        self._filled += size
        if self._filled == START_BYTES:
            self._read_start()
        elif self._filled == START_BYTES + self._length:
            self._take_frame()
        elif self._filled == len(self._buffer):
            self._grow()

    def _expect_start(self) -> None:
        self._buffer = bytearray(START_BYTES)
        self._filled, self._length = 0, 0

    def _read_start(self) -> None:
        self._kind, self._length = read_start(self._buffer, self._limits)
        if self._kind is Frame.DATA:
            if self._incoming is None:
                raise ProtocolError("a DATA frame came where no message's payload was to follow.")
            self._incoming.place(self._length)
            self._data_left = self._length
            self._expect_start()
        elif self._length:
            self._grow()
        else:
            self._take_frame()

    def _grow(self) -> None:
        whole = START_BYTES + self._length
        room = min(whole, 2 * self._filled + _FIRST_ROOM_BYTES) - self._filled
        self._buffer = self._buffer + bytes(room)

    def _take_frame(self) -> None:
        kind, frame = self._kind, bytes(self._buffer)
        self._expect_start()
        if kind in _BEGINS:
            self._incoming = None  # whatever was on its way has been given up by its sender
            self._incoming = self._receiver.begin(kind, frame)
            self._hand_over_if_complete()
        else:
            self._receiver.control(kind, frame)

    def _hand_over_if_complete(self) -> None:
        incoming = self._incoming
        if incoming is not None and incoming.is_complete:
            self._incoming = None
            self._receiver.complete(incoming)
