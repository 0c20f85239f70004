"""A TCP line between one party and its server, which can be slow, and can be disturbed.

It listens on a free port of 127.0.0.1 and carries the bytes of each connection to one address. It
knows nothing of what they mean. Both directions have the line's bandwidth to themselves, and all
connections of one direction share it.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Literal, Self

from prefect_federated.agents.addresses import Address

Way = Literal["up", "down"]
"""From the party to the server, or back."""

_PIECE_BYTES = 16 << 10
_PIECES_UNDER_WAY = 64
_AHEAD_S = 0.05  # how far bytes are taken before the line is free for them
_LEAST_FLIPPED = 1000  # bytes of a piece in which a bit is flipped: more than a heartbeat has


class Disturbance(StrEnum):
    """What happens to a line."""

    CUT = "cut"
    """All of its connections break; new ones work."""
    FREEZE = "freeze"
    """Its connections stay open and move no byte any more (half-open); new ones work."""
    FLIP = "flip"
    """One bit changes on the way."""


@dataclass
class _Armed:
    what: Disturbance
    way: Way
    bytes_left: int


@dataclass(eq=False)
class _Carried:
    """One connection through the line."""

    writers: list[asyncio.StreamWriter]
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.ended.set()


class TcpProxy:
    """A line to `server`. Use as a context manager; `address` is where the party connects to.

    Args:
        server: Where the line leads to.
        bits_per_s: Bandwidth of each direction; None for all there is. May be changed at any time.
        delay_s: How long a byte is under way, each way.
    """

    def __init__(
        self, server: Address, bits_per_s: float | None = None, delay_s: float = 0.0
    ) -> None:
        self.bits_per_s = bits_per_s
        self.delay_s = delay_s
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._carried: set[_Carried] = set()
        self._frozen: set[_Carried] = set()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._is_down = False
        self._armed: _Armed | None = None
        self._struck = threading.Event()
        self._struck_at = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> Address:
        """Where the party connects to."""
        assert self._listener is not None
        return Address(*self._listener.sockets[0].getsockname()[:2])

    def disturb(self, what: Disturbance, way: Way = "down", after_bytes: int = 0) -> None:
        """Has something happen when so many further bytes have passed in one direction.

        What was frozen before breaks now.
        """
        self._struck.clear()
        self._loop.call_soon_threadsafe(self._arm, _Armed(what, way, after_bytes))

    def wait_until_disturbed(self, timeout_s: float) -> float | None:
        """Waits until what `disturb` has asked for happens; returns when (seconds since the epoch).

        None if it has not happened within `timeout_s` seconds; then it does not happen any more.
        """
        if self._struck.wait(timeout_s):
            return self._struck_at
        self._loop.call_soon_threadsafe(self._arm, None)
        return None

    def take_down(self) -> None:
        """Breaks all connections, and each new one, until `bring_up`."""
        self._loop.call_soon_threadsafe(self._set_down, True)

    def bring_up(self) -> None:
        """Lets new connections through again."""
        self._loop.call_soon_threadsafe(self._set_down, False)

    # On the loop's thread

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for carried in [*self._carried, *self._frozen]:
            carried.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _arm(self, armed: _Armed | None) -> None:
        self._armed = armed
        if armed is not None:
            for carried in list(self._frozen):
                carried.abort()

    def _set_down(self, is_down: bool) -> None:
        self._is_down = is_down
        if is_down:
            for carried in [*self._carried, *self._frozen]:
                carried.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried = _Carried([writer])
        try:
            if not self._is_down:
                await self._carry(carried, reader, writer)
        except OSError:
            pass  # the server is not there, or the connection is gone: the party hears of it
        finally:
            carried.abort()
            self._carried.discard(carried)
            self._frozen.discard(carried)

    async def _carry(
        self, carried: _Carried, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        from_server, to_server = await asyncio.open_connection(self._server.host, self._server.port)
        carried.writers.append(to_server)
        if self._is_down:
            return
        self._carried.add(carried)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pump(carried, "up", reader, to_server))
            both.create_task(self._pump(carried, "down", from_server, writer))

    async def _pump(
        self,
        carried: _Carried,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_UNDER_WAY)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._take(carried, way, reader, under_way))
                both.create_task(self._give(carried, writer, under_way))
        except* OSError:
            carried.abort()  # the other direction ends, too

    async def _take(
        self,
        carried: _Carried,
        way: Way,
        reader: asyncio.StreamReader,
        under_way: asyncio.Queue[tuple[float, bytes]],
    ) -> None:
        piece = b"-"
        while piece:
            piece = await reader.read(_PIECE_BYTES)
            if piece and carried not in self._frozen:
                piece = self._strike(way, piece)
            if carried in self._frozen:
                await carried.ended.wait()
                piece = b""
            now = time.monotonic()
            if self.bits_per_s is not None:
                begins = max(now, self._free_at[way])
                self._free_at[way] = begins + len(piece) * 8 / self.bits_per_s
                await asyncio.sleep(max(0.0, begins - now - _AHEAD_S))
                now = self._free_at[way]
            await under_way.put((now + self.delay_s, piece))

    async def _give(
        self,
        carried: _Carried,
        writer: asyncio.StreamWriter,
        under_way: asyncio.Queue[tuple[float, bytes]],
    ) -> None:
        while True:
            arrives_at, piece = await under_way.get()
            if (left := arrives_at - time.monotonic()) > 0:
                await asyncio.sleep(left)
            if carried in self._frozen:
                await carried.ended.wait()
                return
            if not piece:
                if not writer.is_closing():
                    writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()

    def _strike(self, way: Way, piece: bytes) -> bytes:
        """Returns the piece as it goes on; does what was asked for, if it is due."""
        armed = self._armed
        if armed is None or armed.way != way:
            return piece
        armed.bytes_left -= len(piece)
        if armed.bytes_left > 0 or (armed.what is Disturbance.FLIP and len(piece) < _LEAST_FLIPPED):
            return piece
        self._armed = None
        match armed.what:
            case Disturbance.CUT:
                for carried in list(self._carried):
                    carried.abort()
            case Disturbance.FREEZE:
                self._frozen |= self._carried
                self._carried.clear()
            case Disturbance.FLIP:
                changed = bytearray(piece)
                changed[len(changed) // 2] ^= 1
                piece = bytes(changed)
        self._struck_at = time.time()
        self._struck.set()
        return piece
