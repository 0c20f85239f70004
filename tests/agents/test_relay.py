"""The relay between real TCP sockets, with `splice` and without."""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from prefect_federated.agents import relay as relay_module
from prefect_federated.agents.relay import PIPE_BYTES, prepare, relay

Scenario = Callable[[socket.socket, socket.socket, "asyncio.Task[None]"], Awaitable[None]]


@pytest.fixture(params=["splice", "copy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test with the kernel's pipes and with the buffer that other systems use."""
    if request.param == "copy":
        monkeypatch.setattr(relay_module, "_new_pocket", relay_module._Buffer)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    prepare(one)
    prepare(other)
    return one, other


def between(scenario: Scenario) -> None:
    """Runs a scenario with two sockets whose other ends are joined by a relay."""

    async def run() -> None:
        client, inner_client = tcp_pair()
        server, inner_server = tcp_pair()
        with client, server, inner_client, inner_server:
            relaying = asyncio.create_task(relay(inner_client, inner_server))
            try:
                async with asyncio.timeout(20):
                    await scenario(client, server, relaying)
            finally:
                relaying.cancel()
                await asyncio.gather(relaying, return_exceptions=True)

    asyncio.run(run())


async def receive(connection: socket.socket, size: int | None = None) -> bytes:
    """Reads `size` bytes, or all until the end."""
    received = bytearray()
    while size is None or len(received) < size:
        part = await asyncio.get_running_loop().sock_recv(connection, 1 << 20)
        if not part:
            break
        received += part
    return bytes(received)


def test_large_contents_arrive_unchanged_both_ways_at_once() -> None:
    upwards, downwards = os.urandom(20_000_001), os.urandom(15_000_003)

    async def scenario(
        client: socket.socket, server: socket.socket, relaying: "asyncio.Task[None]"
    ) -> None:
        loop = asyncio.get_running_loop()

        async def send(connection: socket.socket, content: bytes) -> None:
            await loop.sock_sendall(connection, content)
            connection.shutdown(socket.SHUT_WR)

        _, _, at_server, at_client = await asyncio.gather(
            send(client, upwards), send(server, downwards), receive(server), receive(client)
        )
        assert at_server == upwards
        assert at_client == downwards
        await relaying

    between(scenario)


def test_a_side_that_has_said_all_still_hears_the_other() -> None:
    async def scenario(
        client: socket.socket, server: socket.socket, relaying: "asyncio.Task[None]"
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"question")
        client.shutdown(socket.SHUT_WR)
        assert await receive(server) == b"question"
        assert not relaying.done()
        await loop.sock_sendall(server, b"answer")
        server.shutdown(socket.SHUT_WR)
        assert await receive(client) == b"answer"
        await relaying

    between(scenario)


def test_a_slow_reader_slows_down_the_writer_and_loses_nothing() -> None:
    async def scenario(
        client: socket.socket, server: socket.socket, relaying: "asyncio.Task[None]"
    ) -> None:
        loop = asyncio.get_running_loop()
        content = os.urandom(64 * PIPE_BYTES)
        sending = asyncio.create_task(loop.sock_sendall(client, content))
        stuck = asyncio.create_task(asyncio.wait_for(asyncio.shield(sending), 0.5))
        with pytest.raises(TimeoutError):
            await stuck
        assert await receive(server, len(content)) == content
        await sending

    between(scenario)


def test_a_reset_of_one_side_ends_the_relay() -> None:
    async def scenario(
        client: socket.socket, server: socket.socket, relaying: "asyncio.Task[None]"
    ) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            await relaying

    between(scenario)
