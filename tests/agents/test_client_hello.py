import asyncio
import select
import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_federated.agents.client_hello import (
    MAX_CLIENT_HELLO_BYTES,
    MAX_PIECES,
    is_decided,
    read_client_hello,
    server_name,
)


def client_hello(name: str | None) -> bytes:
    """Returns what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


HELLO = client_hello("Api.Heart")


def in_records(hello: bytes, size: int) -> bytes:
    """Splits the handshake message of one record into records of `size` bytes."""
    parts = [hello[5:][start : start + size] for start in range(0, len(hello) - 5, size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def test_the_name_is_found_in_lower_case() -> None:
    assert server_name(HELLO) == "api.heart"
    assert is_decided(HELLO)


def test_a_client_that_asks_for_no_name_asks_for_none() -> None:
    hello = client_hello(None)
    assert server_name(hello) is None
    assert is_decided(hello)


@pytest.mark.parametrize("size", [1, 3, 4, 57])
def test_the_name_is_found_in_a_client_hello_split_over_records(size: int) -> None:
    split = in_records(HELLO, size)
    assert server_name(split) == "api.heart"
    assert is_decided(split)
    assert not any(is_decided(split[:end]) for end in range(len(split)))


def test_a_part_of_a_client_hello_decides_nothing() -> None:
    for end in range(len(HELLO)):
        assert not is_decided(HELLO[:end])
        assert server_name(HELLO[:end]) is None


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", b"\x16\x02", b"\x15\x03\x03\x00\x02"])
def test_what_is_no_tls_is_known_at_once(sent: bytes) -> None:
    assert is_decided(sent)
    assert server_name(sent) is None


def test_a_client_hello_that_claims_16_mb_is_not_waited_for() -> None:
    assert is_decided(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff")


def test_more_than_the_limit_is_not_waited_for() -> None:
    record = b"\x16\x03\x01\x00\x01"
    beginning = record + b"\x01" + b"".join(record + byte for byte in (b"\x00", b"\x40", b"\x00"))
    endless = beginning + (record + b"\x00") * MAX_CLIENT_HELLO_BYTES
    assert not is_decided(endless[:MAX_CLIENT_HELLO_BYTES])
    assert is_decided(endless[: MAX_CLIENT_HELLO_BYTES + 1])


@given(st.binary(max_size=600))
def test_any_bytes_are_survived(sent: bytes) -> None:
    name = server_name(sent)
    assert name is None or name.isascii()
    assert is_decided(sent) in (True, False)


@given(st.integers(0, len(HELLO) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_client_hello_is_survived(position: int, damage: bytes) -> None:
    sent = HELLO[:position] + damage + HELLO[position + len(damage) :]
    name = server_name(sent)
    assert name is None or name.isascii()


@given(st.binary(max_size=300))
def test_any_body_of_a_client_hello_is_survived(body: bytes) -> None:
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    sent = b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message
    assert is_decided(sent)
    name = server_name(sent)
    assert name is None or name.isascii()


def read(*parts: bytes, then_close: bool = False, timeout_s: float = 5.0) -> bytes:
    async def run() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            reading = asyncio.create_task(read_client_hello(ours, timeout_s))
            for part in parts:
                theirs.sendall(part)
                await asyncio.sleep(0)
            if then_close:
                theirs.close()
            return await reading

    return asyncio.run(run())


def test_segments_are_put_together_and_nothing_more_is_read() -> None:
    assert read(HELLO[:1], HELLO[1:70], HELLO[70:]) == HELLO


def test_a_silent_client_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        read(HELLO[:20], timeout_s=0.05)


def test_a_client_that_leaves_is_given_up() -> None:
    with pytest.raises(ConnectionError, match="20 bytes"):
        read(HELLO[:20], then_close=True)


def test_a_client_that_sends_crumbs_is_given_up() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            reading = asyncio.create_task(read_client_hello(ours, timeout_s=30))
            for position in range(MAX_PIECES):
                theirs.sendall(HELLO[position : position + 1])
                while select.select([ours], [], [], 0)[0]:
                    await asyncio.sleep(0)
            await reading

    with pytest.raises(ConnectionError, match="64 bytes in 64 pieces"):
        asyncio.run(run())
