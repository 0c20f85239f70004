"""Sockets to listen on."""

import asyncio
import socket

from prefect_federated.agents.addresses import Address, bind


def test_small_answers_are_not_held_back_on_a_bound_socket() -> None:
    async def sends_at_once() -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own: socket.socket = writer.get_extra_info("socket")
            told.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind(Address("127.0.0.1", 0)) as listener:
            async with await asyncio.start_server(accept, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                sends = await told
                writer.close()
                return sends

    assert asyncio.run(sends_at_once())
