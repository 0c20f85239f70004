"""Moves bytes between two sockets without looking at them, inside the kernel where it can.

On Linux `splice` hands pages from one socket to the other through a pipe, so nothing is copied into
this process. A direction holds at most one pipe's worth of bytes: who reads slowly slows down who
writes. It knows nothing of TLS, names or addresses.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Callable
from typing import Protocol

PIPE_BYTES = 1024 * 1024
_IDLE_PIPES = 16
_MOVES_PER_TURN = 4
"""A busy direction lets the others have their turn after this many moves."""

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3


def prepare(connection: socket.socket) -> None:
    """Makes a TCP socket non-blocking and prompt, and lets the kernel notice a dead peer."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(connection)


def keep_alive(connection: socket.socket) -> None:
    """Lets the kernel notice a peer that vanished, after 60 s of silence.

    That is `KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S`.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


async def relay(one: socket.socket, other: socket.socket) -> None:
    """Moves bytes both ways until both sides have said all, or one of them is gone.

    Args:
        one: A connected non-blocking socket.
        other: Likewise. The caller closes both.

    Raises:
        OSError: a side is gone; what the other side had already sent may not have arrived.
    """
    loop = asyncio.get_running_loop()
    directions = [_Direction(loop, one, other), _Direction(loop, other, one)]
    try:
        await asyncio.gather(*(direction.ended for direction in directions))
    finally:
        for direction in directions:
            direction.stop()


class _Pocket(Protocol):
    """Where a direction keeps bytes that were read and not yet written."""

    held: int

    def fill(self, source: socket.socket) -> int:
        """Reads what is there; returns the number of bytes, 0 at the end."""

    def empty(self, sink: socket.socket) -> None:
        """Writes what the sink takes of what is held."""

    def discard(self) -> None:
        """Gives back what it is made of."""


class _Direction:
    """One way: reads when it holds nothing, writes when it holds something, never both."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, source: socket.socket, sink: socket.socket
    ) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._source = source
        self._sink = sink
        self._pocket: _Pocket | None = None
        loop.add_reader(source, self._guarded, self._read)

    def stop(self) -> None:
        """Ends this direction at once; what it holds is lost."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        if self._pocket is not None:
            self._pocket.discard()
            self._pocket = None
        if not self.ended.done():
            self.ended.cancel()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            if not self.ended.done():
                self.ended.set_exception(error)
            self.stop()

    def _read(self) -> None:
        if self._pocket is None:
            self._pocket = _new_pocket()
        for _ in range(_MOVES_PER_TURN):
            try:
                read = self._pocket.fill(self._source)
            except BlockingIOError:
                break
            if read == 0:
                self._finish()
                return
            self._empty()
            if self._pocket.held:
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._sink, self._guarded, self._write)
                return
        self._let_go()

    def _write(self) -> None:
        self._empty()
        if self._pocket is not None and not self._pocket.held:
            self._let_go()
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._guarded, self._read)

    def _empty(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._pocket is not None and self._pocket.held:
                self._pocket.empty(self._sink)

    def _let_go(self) -> None:
        """An idle connection holds no pipe."""
        if self._pocket is not None:
            self._pocket.discard()
            self._pocket = None

    def _finish(self) -> None:
        self._let_go()
        self._loop.remove_reader(self._source)
        self._sink.shutdown(socket.SHUT_WR)
        self.ended.set_result(None)


if sys.platform == "linux":
    _FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
    _idle_pipes: list[tuple[int, int]] = []

    class _Pipe:
        """Bytes in a pipe of the kernel."""

        def __init__(self) -> None:
            self.held = 0
            self._output, self._input = _idle_pipes.pop() if _idle_pipes else _new_pipe()

        def fill(self, source: socket.socket) -> int:
            moved = os.splice(source.fileno(), self._input, PIPE_BYTES, flags=_FLAGS)
            self.held += moved
            return moved

        def empty(self, sink: socket.socket) -> None:
            self.held -= os.splice(self._output, sink.fileno(), self.held, flags=_FLAGS)

        def discard(self) -> None:
            if self.held == 0 and len(_idle_pipes) < _IDLE_PIPES:
                _idle_pipes.append((self._output, self._input))
            else:
                os.close(self._output)
                os.close(self._input)

    def _new_pipe() -> tuple[int, int]:
        output, entrance = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Past the user's share of pipe memory the kernel refuses; the default 64 KiB work too.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(entrance, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return output, entrance


class _Buffer:
    """Bytes in this process, for systems without `splice`."""

    def __init__(self) -> None:
        self.held = 0
        self._content = memoryview(b"")

    def fill(self, source: socket.socket) -> int:
        self._content = memoryview(source.recv(PIPE_BYTES))
        self.held = len(self._content)
        return self.held

    def empty(self, sink: socket.socket) -> None:
        self._content = self._content[sink.send(self._content) :]
        self.held = len(self._content)

    def discard(self) -> None:
        self._content.release()


def _new_pocket() -> _Pocket:
    return _Pipe() if sys.platform == "linux" else _Buffer()
