"""What waits to be sent on a connection, and in which order its bytes go out.

It does no I/O. Control frames go before the next data frame, so they overtake a large transfer; its
payload is never copied, except for what is needed to fill TLS records. Any thread may add to it;
one thread takes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prefect_federated.frames import Frame, start
from prefect_federated.wire import Encoded

_RECORD_BYTES = 16 << 10  # plaintext of a full TLS record


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message's payload on its way to the peer.

    Args:
        opening: The frame that begins it.
        message: The message.
        offset: Bytes of the payload that the peer has.
        is_wanted: Asked before each data frame; the rest is not sent once it says no.
    """

    opening: bytes
    message: Encoded
    offset: int = 0
    is_wanted: Callable[[], bool] = lambda: True


class Outbox:
    """The frames and transfers that wait on one connection."""

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._transfers: deque[Transfer] = deque()
        self._sending: Transfer | None = None
        self._chunks: Iterator[list[memoryview]] = iter(())
        self._pieces: Iterator[memoryview] = iter(())
        self._piece = memoryview(b"")
        self._last: bytes | None = None
        self._is_last_out = False

    def post(self, frame: bytes) -> None:
        """Adds a frame that goes before the next data frame."""
        self._control.append(frame)

    def post_first(self, frame: bytes) -> None:
        """Adds a frame that goes before all others."""
        self._control.appendleft(frame)

    def transfer(self, transfer: Transfer) -> None:
        """Adds a transfer, which goes after those that were added before."""
        self._transfers.append(transfer)

    def finish(self, frame: bytes) -> None:
        """Sets the last frame: after the frames that wait, and instead of the transfers."""
        if self._last is None:
            self._last = frame

    @property
    def is_finished(self) -> bool:
        """Whether the last frame is out."""
        return self._is_last_out and not self._piece

    @property
    def waiting(self) -> int:
        """Number of frames that wait, transfers not counted."""
        return len(self._control)

    def piece(self) -> memoryview | None:
        """Returns the bytes that come next, the same until `advance`; None if nothing waits."""
        while not self._piece:
            following = next(self._pieces, None)
            if following is not None:
                self._piece = following
                continue
            frame = self._next_frame()
            if frame is None:
                return None
            self._pieces = _pieces(frame)
        return self._piece

    def advance(self, size: int) -> None:
        """Notes that so many bytes of the piece are out."""
        self._piece = self._piece[size:] if size < self._piece.nbytes else memoryview(b"")

    def _next_frame(self) -> Sequence[bytes | memoryview] | None:
        """Returns the next frame in parts."""
        if self._is_last_out:
            return None
        if self._control:
            return [self._control.popleft()]
        if self._last is not None:
            self._sending, self._chunks = None, iter(())
            self._is_last_out = True
            return [self._last]
        while True:
            if self._sending is not None:
                chunk = next(self._chunks, None) if self._sending.is_wanted() else None
                if chunk is not None:
                    return [start(Frame.DATA, sum(part.nbytes for part in chunk)), *chunk]
                self._sending, self._chunks = None, iter(())
            if not self._transfers:
                return None
            transfer = self._transfers.popleft()
            if transfer.is_wanted():
                self._sending = transfer
                self._chunks = transfer.message.chunks(transfer.offset)
                return [transfer.opening]


def _pieces(frame: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
    """Yields a frame's bytes: large parts as they are, small ones joined to full TLS records."""
    joined: list[memoryview] = []
    room = _RECORD_BYTES
    for part in frame:
        view = memoryview(part)
        while view.nbytes:
            if not joined and view.nbytes >= _RECORD_BYTES:
                whole = view.nbytes - view.nbytes % _RECORD_BYTES
                yield view[:whole]
                view = view[whole:]
                continue
            joined.append(view[:room])
            view, room = view[room:], room - joined[-1].nbytes
            if not room:
                yield memoryview(b"".join(joined))
                joined, room = [], _RECORD_BYTES
    if joined:
        yield memoryview(b"".join(joined))
