"""Garbage that somebody sends to a job under a site's own kit, beside the site or in its place."""

import contextlib
import random
import socket
import ssl
from typing import Literal

from prefect_federated.agents.addresses import Address
from prefect_federated.frames import DATA_BYTES, PROTOCOL_VERSION, Frame, control, start
from prefect_federated.kits import StartupKit

Garbage = Literal[
    "bytes without TLS", "bytes without a hello", "bytes after a hello", "an endless frame",
    "data that belongs to nothing", "an update that nobody asked for", "a cut hello",
]  # fmt: skip
GARBAGE: tuple[Garbage, ...] = (
    "bytes without TLS", "bytes without a hello", "bytes after a hello", "an endless frame",
    "data that belongs to nothing", "an update that nobody asked for", "a cut hello",
)  # fmt: skip

_PATIENCE_S = 20.0


def send_garbage(
    what: Garbage, kit: StartupKit, server: Address, job: str, source: random.Random
) -> bytes:
    """Connects as a site, sends garbage, and returns what came back before the connection ended.

    Raises:
        TimeoutError: the connection was not ended by the other side.
    """
    with socket.create_connection((server.host, server.port), _PATIENCE_S) as raw:
        if what == "bytes without TLS":
            return _exchange(raw, source.randbytes(source.randint(1, 4096)))
        context = kit.client_context()
        with context.wrap_socket(raw, server_hostname=kit.job_name(job)) as secure:
            return _exchange(secure, _garbage(what, job, source))


def _exchange(connection: socket.socket, garbage: bytes) -> bytes:
    heard = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(garbage)
        while piece := connection.recv(1 << 16):
            heard = (heard + piece)[-(1 << 16) :]
    return heard


def _garbage(what: Garbage, job: str, source: random.Random) -> bytes:
    hello = control(
        Frame.HELLO,
        {
            "protocol": PROTOCOL_VERSION, "job": job, "epoch": 0, "kinds": ["train", "initialize"],
            "labels": {}, "holding": [], "receiving": {},
        },
    )  # fmt: skip
    noise = source.randbytes(source.randint(1, 1 << 16))
    match what:
        case "bytes after a hello":
            return hello + noise
        case "an endless frame":
            return hello + start(Frame.OFFER, 0xFFFFFFFF) + noise
        case "data that belongs to nothing":
            return hello + (start(Frame.DATA, DATA_BYTES) + bytes(DATA_BYTES)) * 4
        case "an update that nobody asked for":
            return hello + control(Frame.UPDATE, {"id": "1.1", "tensors": "all of them"})
        case "a cut hello":
            return hello[: len(hello) // 2] + noise
        case _:
            return noise
