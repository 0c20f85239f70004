"""The first message of a TLS connection, read without decrypting anything.

A ClientHello travels in the clear and names the server that the client wants (SNI, RFC 6066). This
reads that name from whatever bytes a stranger sends; it checks nothing else and answers nothing.
"""

import asyncio
import socket
from dataclasses import dataclass

MAX_CLIENT_HELLO_BYTES = 16 * 1024
"""A client that has sent this much without a whole ClientHello is not one of ours."""
MAX_PIECES = 64
"""Each piece that arrives makes the ClientHello be looked at anew; honest clients send a few."""

_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_SERVER_NAME_EXTENSION = 0
_HOST_NAME = 0
_MAX_RECORD_BYTES = 16 * 1024


class _NotClientHello(Exception):
    """The bytes cannot be the beginning of a ClientHello, whatever follows them."""


@dataclass
class _Fields:
    """Takes one field after another from bytes, and never more than there are."""

    content: bytes
    position: int = 0

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.content):
            raise _NotClientHello
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))

    @property
    def is_empty(self) -> bool:
        return self.position == len(self.content)


def is_decided(received: bytes) -> bool:
    """Returns whether no further bytes can change what `server_name` says about these.

    That is so when the whole ClientHello is there, and when it cannot become one.
    """
    try:
        return _client_hello(received) is not None
    except _NotClientHello:
        return True


def server_name(record: bytes) -> str | None:
    """Returns the name that a TLS client asks for, in lower case; None where it asks for none.

    Args:
        record: The first bytes of a connection: one TLS record or several, whole or cut short.
            Bytes that are no ClientHello, or only part of one, ask for no name.
    """
    try:
        hello = _client_hello(record)
        return None if hello is None else _server_name(hello)
    except _NotClientHello:
        return None


async def read_client_hello(connection: socket.socket, timeout_s: float) -> bytes:
    """Returns the first bytes of a connection: a ClientHello, or what shows that it is none.

    Args:
        connection: A connected non-blocking socket. All that was read is returned.
        timeout_s: Seconds that the client has for all of it.

    Raises:
        TimeoutError: the client was slower.
        ConnectionError: the client closed the connection first, or sends crumbs.
    """
    loop = asyncio.get_running_loop()
    received = b""
    async with asyncio.timeout(timeout_s):
        for _ in range(MAX_PIECES):
            part = await loop.sock_recv(connection, MAX_CLIENT_HELLO_BYTES + 1 - len(received))
            if not part:
                raise ConnectionResetError(f"closed after {len(received)} bytes")
            received += part
            if is_decided(received):
                return received
    raise ConnectionAbortedError(f"{len(received)} bytes in {MAX_PIECES} pieces")


def _client_hello(received: bytes) -> bytes | None:
    """Joins the records' handshake bytes; None while the ClientHello is incomplete."""
    handshake = b""
    position = 0
    while position < len(received):
        header = received[position : position + 5]
        if header[0] != _HANDSHAKE_RECORD or (len(header) > 1 and header[1] != 3):
            raise _NotClientHello
        length = int.from_bytes(header[3:5], "big")
        if len(header) == 5 and not 0 < length <= _MAX_RECORD_BYTES:
            raise _NotClientHello
        handshake += received[position + 5 : position + 5 + length] if len(header) == 5 else b""
        if handshake and handshake[0] != _CLIENT_HELLO:
            raise _NotClientHello
        if len(handshake) >= 4:
            size = int.from_bytes(handshake[1:4], "big")
            if size > MAX_CLIENT_HELLO_BYTES:
                raise _NotClientHello
            if len(handshake) >= 4 + size:
                return handshake[4 : 4 + size]
        position += 5 + length
    if len(received) > MAX_CLIENT_HELLO_BYTES:
        raise _NotClientHello
    return None


def _server_name(hello: bytes) -> str | None:
    fields = _Fields(hello)
    fields.take(2 + 32)  # version, random
    fields.vector(1)  # session id
    fields.vector(2)  # cipher suites
    fields.vector(1)  # compression methods
    if fields.is_empty:
        return None
    extensions = _Fields(fields.vector(2))
    while not extensions.is_empty:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME_EXTENSION:
            names = _Fields(_Fields(content).vector(2))
            if names.number(1) != _HOST_NAME:
                return None
            name = names.vector(2)
            return name.decode("ascii").lower() if name.isascii() and name else None
    return None
