"""One TLS connection between a job's endpoint and a site: frames both ways on one thread.

The thread that calls `run` does all reading and writing, since OpenSSL lets no two threads use one
connection at once; other threads only add to what is to be sent. It notices a peer that is silent,
lets the peer notice that it is there, and never waits for anything but the socket.
"""

import contextlib
import math
import select
import socket
import ssl
import threading
import time

from prefect_federated.frames import DEFAULT_LIMITS, Frame, Limits, control
from prefect_federated.transport.frame_reader import FrameReader, Receiver
from prefect_federated.transport.outbox import Outbox, Transfer
from prefect_federated.transport.tls_channel import TlsChannel

HEARTBEAT_S = 3.0
SILENCE_S = 12.0
"""Without a byte from the peer for so long, a connection counts as broken."""
FAREWELL_S = 2.0
"""The last frame may take so long to go out and to be read."""

_TURN_BYTES = 1 << 20  # read or written at most before the other direction has its turn
_BATCH_BYTES = 256 << 10  # encrypted before they are sent
_WAITING_FRAMES = 10_000  # that a peer may leave unread
_ANY_INPUT = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class ConnectionLost(Exception):
    """The connection ended or broke; the message says how."""


class Connection:
    """One connection; the owner calls `handshake`, then `run` or `farewell`, then `close`.

    Args:
        channel: The TLS channel, which has shaken no hands yet.
        limits: What a message may hold at most.
    """

    def __init__(self, channel: TlsChannel, limits: Limits = DEFAULT_LIMITS) -> None:
        self._channel = channel
        self._limits = limits
        self._outbox = Outbox()
        self._is_finishing = threading.Event()
        self._is_deaf = threading.Event()
        self._is_cut = False
        self._is_over = False
        self._thread = 0
        self._deadline: float | None = None
        self._ear, self._bell = socket.socketpair()
        self._poll = select.poll()
        self._is_blocked = False  # until the socket takes more
        self._heard_at = self._said_at = time.monotonic()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._poll.register(self._ear, select.POLLIN)

    # From any thread

    def post(self, frame: bytes) -> None:
        """Sends a frame, before the next data frame."""
        if not self._is_over:
            self._outbox.post(frame)
            self._ring()

    def post_first(self, frame: bytes) -> None:
        """Sends a frame before all that wait; only for the connection's own thread."""
        self._outbox.post_first(frame)

    def transfer(self, transfer: Transfer) -> None:
        """Sends a message with its payload, after the transfers that were asked for before."""
        if not self._is_over:
            self._outbox.transfer(transfer)
            self._ring()

    def finish(self, frame: bytes) -> None:
        """Sends a last frame instead of all transfers and ends; nothing that arrives counts now."""
        self._outbox.finish(frame)
        self._is_finishing.set()
        self._ring()

    def wait_deaf(self, timeout_s: float) -> bool:
        """Waits until nothing that arrives is taken any more, after `finish` or `cut`."""
        return self._is_deaf.wait(timeout_s)

    def cut(self) -> None:
        """Ends at once, whatever the connection is at, its handshake too."""
        self._is_cut = True
        self._channel.abort()

    def _ring(self) -> None:
        if threading.get_ident() == self._thread:
            return  # it looks before it waits
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens
            self._bell.send(b"!")

    # From the connection's own thread

    def handshake(self, timeout_s: float) -> None:
        """Shakes hands in bounded time, however few bytes the peer sends at a time.

        The time goes on for what must come next, until `introduced`.

        Raises:
            OSError: TLS failed (`ssl.SSLError`), the peer was too slow (`TimeoutError`), or the
                connection broke.
        """
        self._deadline = deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        try:
            while not self._channel.shake_hands():
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise TimeoutError(f"no TLS handshake within {timeout_s:g} s")
        except ssl.SSLError:
            self._channel.end(min(deadline, time.monotonic() + FAREWELL_S))
            raise
        self._heard_at = self._said_at = time.monotonic()

    def introduced(self) -> None:
        """Notes that the peer has said what it had to say within the handshake's time."""
        self._deadline = None

    @property
    def certificate(self) -> bytes | None:
        """The peer's certificate (DER)."""
        return self._channel.certificate

    def run(self, receiver: Receiver) -> None:
        """Carries frames until `finish` has been said.

        Raises:
            ConnectionLost: the connection ended or broke before.
            Exception: what the receiver raised; `farewell` can still be called then.
        """
        try:
            self._carry(FrameReader(receiver, self._limits))
        except OSError as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error
        finally:
            self._is_deaf.set()

    def farewell(self, frame: bytes) -> None:
        """Says a last word and waits, in bounded time, until it is read; raises nothing."""
        self.finish(frame)
        self._is_deaf.set()
        with contextlib.suppress(OSError, ConnectionLost):
            self._carry(None)

    def close(self) -> None:
        """Gives everything back."""
        self._is_over = True
        self._is_deaf.set()
        self._outbox = Outbox()
        for end in (self._channel, self._ear, self._bell):
            end.close()

    def _carry(self, reader: FrameReader | None) -> None:
        self._thread = threading.get_ident()
        is_readable, is_rung = True, False
        farewell_by = 0.0
        while True:
            if is_rung:
                self._answer_the_bell()
            if self._is_cut:
                raise ConnectionLost("ended here")
            if self._is_finishing.is_set() and not farewell_by:
                reader = None
                self._is_deaf.set()
                farewell_by = time.monotonic() + FAREWELL_S
            if not self._is_blocked:
                self._write()
            if self._outbox.is_finished and not self._is_blocked:
                self._channel.end(farewell_by)
                return
            is_drained = True
            if is_readable and reader is not None:
                is_drained = self._read(reader)
            now = time.monotonic()
            if farewell_by and now > farewell_by:
                raise ConnectionLost("the peer does not read")
            if self._deadline is not None and now > self._deadline:
                raise ConnectionLost("it did not introduce itself in time")
            if not is_drained or (not self._is_blocked and self._outbox.piece() is not None):
                is_rung = False
                continue
            events = self._wait(now, farewell_by, reader is not None)
            is_rung = self._ear.fileno() in events
            found = events.get(self._channel.fileno(), 0)
            is_readable = bool(found & _ANY_INPUT)
            if found & (select.POLLOUT | select.POLLHUP | select.POLLERR):
                self._is_blocked = False

    def _write(self) -> None:
        """Sends what the socket takes, within one turn."""
        before = self._channel.sent_bytes
        self._is_blocked = not self._channel.flush()
        while not self._is_blocked and self._channel.sent_bytes - before < _TURN_BYTES:
            batch = 0
            while batch < _BATCH_BYTES and (piece := self._outbox.piece()) is not None:
                self._channel.encrypt(piece)
                self._outbox.advance(piece.nbytes)
                batch += piece.nbytes
            if not batch:
                break
            self._is_blocked = not self._channel.flush()
        if self._channel.sent_bytes > before:
            self._said_at = time.monotonic()

    def _read(self, reader: FrameReader) -> bool:
        """Takes what has arrived, within one turn; returns whether that was all."""
        heard = 0
        try:
            while heard < _TURN_BYTES and not self._is_finishing.is_set():
                size = self._channel.receive_into(reader.place())
                if size is None:
                    return True
                if size == 0:
                    raise ConnectionLost("the peer closed the connection")
                heard += size
                reader.advance(size)
        finally:
            if heard:
                self._heard_at = time.monotonic()
        return False

    def _wait(self, now: float, farewell_by: float, is_reading: bool) -> dict[int, int]:
        """Waits for the socket, the bell or the time; returns what happened, by file."""
        if self._outbox.waiting > _WAITING_FRAMES:
            raise ConnectionLost(f"the peer leaves {self._outbox.waiting:,} frames unread")
        until = farewell_by
        if is_reading:
            if now - self._heard_at >= SILENCE_S:
                raise ConnectionLost(f"silent for {SILENCE_S:g} s")
            until = min(self._heard_at + SILENCE_S, self._deadline or math.inf)
            if not self._is_blocked:
                if now - self._said_at >= HEARTBEAT_S:
                    self._outbox.post(control(Frame.HEARTBEAT))
                    return {}
                until = min(until, self._said_at + HEARTBEAT_S)
        wanted = select.POLLIN if is_reading else 0
        self._poll.register(self._channel, wanted | (select.POLLOUT if self._is_blocked else 0))
        return dict(self._poll.poll(max(0.0, until - now) * 1000 + 1))

    def _answer_the_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)
