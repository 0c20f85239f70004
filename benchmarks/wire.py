"""Our driver beside a raw TLS socket and plain gRPC: the same random bytes, in the same run.

    python -m benchmarks.wire --json FILE

Two processes, one a job's server, the other its site, mutual TLS 1.3 on loopback. Each contender
keeps one connection, and each transfer ends with the bytes in a new array of the receiver's. Ours
is measured from `hub.call` to the site's task, and from the site's reply to the controller's
update; the others from the first byte sent to the last one in place.
"""

import itertools
import json
import multiprocessing as mp
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Annotated, Protocol

import cyclopts
import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from prefect_federated.agents.processes import LEAN_MEMORY
from prefect_federated.kits import ServerAddress, StartupKit, load_kit
from prefect_federated.messages import Message, Update
from prefect_federated.provisioning import provision
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.tls_client import TlsLink
from prefect_federated.transport.tls_server import TlsEndpoint

SIZES = {"18mb": (18_000_000, 21), "100mb": (100_000_000, 9), "1gb": (1_000_000_000, 3)}
"""Bytes and repetitions, after one to warm up."""
JOB = "wire"
CONTENDERS = ("ours", "raw", "grpc")
_PART = 1 << 20
_SERVERS = """\
name: bench
servers: [{name: server, address: "127.0.0.1:1", organisation: Bench}]
sites: [{name: site, organisation: Bench}]
users: [{name: admin, organisation: Bench, role: project_admin}]
"""

Bytes = NDArray[np.uint8]


def main(
    *,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
    sizes: Annotated[str, cyclopts.Parameter(help="Which of 18mb, 100mb, 1gb.")] = "18mb,100mb,1gb",
) -> None:
    """Measure the three and print what was measured as JSON."""
    machine = describe_machine()
    chosen = {name: SIZES[name] for name in sizes.split(",")}
    with tempfile.TemporaryDirectory(prefix="prefect-federated-wire-") as folder:
        file = Path(folder) / "federation.yaml"
        file.write_text(_SERVERS)
        provision(file, Path(folder) / "workspace", passphrase=b"only for this benchmark")
        measured = _measure(Path(folder) / "workspace" / "kits", chosen)
    text = json.dumps({**_figures(measured), "machine": machine}, indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


def _figures(seconds: dict[tuple[str, str, str], list[float]]) -> dict[str, object]:
    """Medians in MB/s, and ours over the faster of the others, by way and size."""
    speeds: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for contender, way, size in seconds:
        median = statistics.median(seconds[contender, way, size])
        speeds[f"{contender}_{way}_{size}_mb_s"] = round(SIZES[size][0] / 1e6 / median, 1)
    for _, way, size in [key for key in seconds if key[0] == "ours"]:
        others = [speeds[f"{name}_{way}_{size}_mb_s"] for name in CONTENDERS[1:]]
        ratio = speeds[f"ours_{way}_{size}_mb_s"] / max(others)
        ratios[f"ratio_{way}_{size}"] = round(ratio, 3)
    runs = {"_".join(key): [round(value, 4) for value in got] for key, got in seconds.items()}
    return {**ratios, "smallest_ratio": min(ratios.values()), **speeds, "seconds": runs}


def _measure(
    kits: Path, chosen: dict[str, tuple[int, int]]
) -> dict[tuple[str, str, str], list[float]]:
    kit = load_kit(kits / "server")
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    hub = Hub(JOB, 1, ("site",))
    seconds: dict[tuple[str, str, str], list[float]] = {}
    plain, raw = _GrpcServer(kit), _RawServer(kit)
    with TlsEndpoint(hub, kit) as endpoint, closing(plain), closing(raw):
        ports = (int(endpoint.address.rpartition(":")[2]), raw.port, plain.port)
        site = context.Process(target=_site, args=(theirs, kits / "site", ports), daemon=True)
        site.start()
        raw.accept()
        assert ours.recv() == "ready"
        peers: dict[str, _Peer] = {"ours": _Server(hub), "raw": raw, "grpc": plain}
        for size, (count, repetitions) in chosen.items():
            model = _model(count)
            plain.hold(model)
            ours.send(("size", "", count))
            ours.recv()
            for repetition in range(repetitions + 1):
                for contender, way in itertools.product(CONTENDERS, ("down", "up")):
                    ours.send((contender, way, count))
                    began, ended = _move(peers[contender], way, model, ours)
                    if repetition:
                        seconds.setdefault((contender, way, size), []).append(ended - began)
        ours.send(("end", "", 0))
        hub.end("completed", "measured")
        site.join(10)
    return seconds


def _move(peer: "_Peer", way: str, model: Bytes, site: Pipe) -> tuple[float, float]:
    """Moves the bytes one way; returns when that began and ended, by the clock of both."""
    own = peer.down(model) if way == "down" else peer.up(model)
    began, ended = site.recv()
    return (own or began, ended) if way == "down" else (began, own or ended)


# The server's side of each: when a transfer began or ended there, or None where the site knows


class _Peer(Protocol):
    def down(self, model: Bytes) -> float | None: ...
    def up(self, model: Bytes) -> float | None: ...


class _Server:
    """A job's hub, as a controller uses it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def down(self, model: Bytes) -> float:
        began = time.monotonic()
        call = self._hub.call("down", Message({}, {"w": model}), ["site"], CallTerms())
        assert all(isinstance(reply, Update) for reply in call)
        return began

    def up(self, model: Bytes) -> float:
        call = self._hub.call("up", Message({}), ["site"], CallTerms())
        update = next(iter(call))
        ended = time.monotonic()
        assert isinstance(update, Update)
        _check(update.tensors["w"], model)
        return ended


class _RawServer:
    """A TLS socket, read and written as fast as Python can."""

    def __init__(self, kit: StartupKit) -> None:
        self._context = kit.server_context()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def accept(self) -> None:
        raw, _ = self._listener.accept()
        self._secure = self._context.wrap_socket(raw, server_side=True)

    def close(self) -> None:
        self._secure.close()
        self._listener.close()

    def down(self, model: Bytes) -> float:
        began = time.monotonic()
        self._secure.sendall(model.data)
        return began

    def up(self, model: Bytes) -> float:
        received = _receive_raw(self._secure, model.size)
        ended = time.monotonic()
        _check(received, model)
        return ended


def _receive_raw(secure: ssl.SSLSocket, count: int) -> Bytes:
    received = np.empty(count, np.uint8)
    rest = received.data
    while rest:
        rest = rest[secure.recv_into(rest) :]
    return received


class _GrpcServer:
    """A gRPC server with two methods: one gives the model in parts, the other takes it."""

    def __init__(self, kit: StartupKit) -> None:
        self._model: Bytes = np.empty(0, np.uint8)
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=_GRPC_OPTIONS)
        credentials = grpc.ssl_server_credentials(
            [(kit.private_key.read_bytes(), kit.certificate.read_bytes())],
            kit.ca.read_bytes(),
            require_client_auth=True,
        )
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "down": grpc.unary_stream_rpc_method_handler(self._give),
            "up": grpc.stream_unary_rpc_method_handler(self._take),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("wire", handlers),)
        )
        self.port = int(self._server.add_secure_port("127.0.0.1:0", credentials))
        self._server.start()

    def close(self) -> None:
        self._server.stop(0)

    def down(self, model: Bytes) -> None:
        assert np.shares_memory(model, self._model)

    def up(self, model: Bytes) -> None:
        assert np.shares_memory(model, self._model)

    def hold(self, model: Bytes) -> None:
        """Sets what is given; before the site asks for it."""
        self._model = model

    def _give(self, _request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        return _parts(self._model)

    def _take(self, parts: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
        received = _gather(parts, self._model.size)
        ended = time.monotonic()
        _check(received, self._model)
        return repr(ended).encode()


def _parts(model: Bytes) -> Iterator[bytes]:
    view = model.data
    for position in range(0, view.nbytes, _PART):
        yield bytes(view[position : position + _PART])


def _gather(parts: Iterator[bytes], count: int) -> Bytes:
    received = np.empty(count, np.uint8)
    view, position = received.data, 0
    for part in parts:
        view[position : position + len(part)] = part
        position += len(part)
    assert position == count
    return received


def _check(received: Bytes, model: Bytes) -> None:
    """Every 4099th byte; all of them would take as long as the transfer."""
    assert received.size == model.size
    assert np.array_equal(received[::4099], model[::4099])
    assert received[-1] == model[-1]


def _model(count: int) -> Bytes:
    return np.random.default_rng(1).integers(0, 256, count, dtype=np.uint8)


_GRPC_OPTIONS = [
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.max_receive_message_length", 32 << 20),
]


# The site's side


def _site(orders: Pipe, folder: Path, ports: tuple[int, int, int]) -> None:
    """Does what it is told: which contender, which way; answers when it began and ended."""
    kit = replace(load_kit(folder), servers=(ServerAddress("server", "127.0.0.1", ports[0]),))
    name = kit.job_name(JOB)
    raw = kit.client_context().wrap_socket(
        socket.create_connection(("127.0.0.1", ports[1])), server_hostname=name
    )
    credentials = grpc.ssl_channel_credentials(
        kit.ca.read_bytes(), kit.private_key.read_bytes(), kit.certificate.read_bytes()
    )
    options = [*_GRPC_OPTIONS, ("grpc.ssl_target_name_override", name)]
    model: Bytes = np.empty(0, np.uint8)
    with (
        TlsLink(kit, JOB) as link,
        grpc.secure_channel(f"127.0.0.1:{ports[2]}", credentials, options) as channel,
    ):
        link.attach(("up", "down"))
        give: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/wire/down")
        take: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/wire/up")
        orders.send("ready")
        while (order := orders.recv())[0] != "end":
            contender, way, count = order
            began = ended = 0.0
            received = model
            if contender == "size":
                del received
                model = _model(count)
                orders.send("ready")
                continue
            if contender == "ours":
                task = link.receive()
                began = ended = time.monotonic()
                if way == "down":
                    received = task.model["w"]
                    link.reply(task, Update())
                else:
                    link.reply(task, Update({"w": model}))
                del task
            elif contender == "raw" and way == "down":
                received = _receive_raw(raw, count)
                ended = time.monotonic()
            elif contender == "raw":
                began = time.monotonic()
                raw.sendall(model.data)
            elif way == "down":
                began = time.monotonic()
                received = _gather(give(b"go"), count)
                ended = time.monotonic()
            else:
                began = time.monotonic()
                ended = float(take(_parts(model)))
            _check(received, model)
            orders.send((began, ended))
            del received


if __name__ == "__main__":
    if not LEAN_MEMORY.items() <= os.environ.items():  # the memory that jobs' processes have
        command = [sys.executable, "-m", "benchmarks.wire", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **LEAN_MEMORY})
    cyclopts.run(main)
