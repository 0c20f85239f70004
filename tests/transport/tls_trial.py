"""A job's endpoint and its sites over real TLS: a relay that fails, a site, a raw client."""

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prefect_federated.errors import FederatedError
from prefect_federated.executors import LoadedExecutor, Site, TaskFunction, serve
from prefect_federated.frames import (
    PROTOCOL_VERSION,
    START_BYTES,
    Frame,
    body_of,
    control,
    kind_of,
    read_start,
)
from prefect_federated.kits import StartupKit
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors, Update
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.tls_client import TlsLink
from prefect_federated.transport.waiting import Call
from prefect_federated.wire import specs_of
from tests.agents.network import PATIENCE_S, eventually

JOB = "job-1"
MODEL: dict[str, Tensor] = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@dataclass
class RunningSite:
    """A site's process, as a thread: it serves tasks until the job ends."""

    kit: StartupKit
    functions: Mapping[str, TaskFunction]
    end: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        site = Site(self.kit.identity.name, Path(), Path(), {"lr": 0.5})
        try:
            with TlsLink(self.kit, JOB) as link:
                serve(LoadedExecutor("trial", self.functions), site, link)
        except FederatedError as error:
            self.end = error

    def join(self) -> BaseException | None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.end


def halve(model: Tensors, site: Site) -> Update:
    return Update({name: np.divide(array, 2) for name, array in model.items()}, weight=2)


def ask(hub: Hub, *sites: str, model: Tensors = MODEL, lost_after_s: float = 30) -> Call:
    eventually(lambda: set(hub.attached()) >= set(sites), f"{sites} attach")
    terms = CallTerms(
        round=1, quorum=0, timeout_s=60, lost_after_s=lost_after_s, expect=specs_of(model)
    )
    return hub.call("train", Message({"config": {"lr": 0.1}}, model), sites, terms)


class Wire:
    """A TCP relay that the test cuts, freezes or slows; it counts what it carries."""

    def __init__(self, port: int) -> None:
        self.port = port  # of the endpoint; may change
        self.cut_after: dict[str, int] = {}  # "up" or "down" -> bytes until the next cut
        self.cuts = 0
        self.dials = 0
        self.carried = {"up": 0, "down": 0}
        self.bytes_per_s: float | None = None
        self.may_pass = threading.Event()
        self.may_pass.set()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.port), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    self.dials += 1
                    self._open += [near, far]
                for source, target, way in ((near, far, "up"), (far, near, "down")):
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                    threading.Thread(
                        target=self._relay, args=(source, target, way), daemon=True
                    ).start()

    def _relay(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                self.may_pass.wait()
                if self.bytes_per_s is not None:
                    time.sleep(len(part) / self.bytes_per_s)  # a line's pace, not a wait
                with self._lock:
                    if way in self.cut_after:
                        self.cut_after[way] -= len(part)
                    due = self.cut_after.get(way, 1) <= 0
                if due:
                    self.cut()
                    return
                target.sendall(part)
                self.carried[way] += len(part)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def freeze(self) -> None:
        """Lets nothing through any more, and says so to nobody."""
        self.may_pass.clear()

    def cut(self) -> None:
        with self._lock:
            self.cuts += 1
            self.cut_after.clear()
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._open.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.may_pass.set()
        self.cut()


class RawStream:
    """A client that sends what it likes and keeps what it gets."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self.secure = secure
        self.frames: list[bytes] = []
        self._outbox = bytearray()
        self._lock = threading.Lock()
        self._wake, self._alarm = socket.socketpair()
        self._is_over = False
        self._is_done_saying = False
        secure.setblocking(False)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        received = bytearray()
        with selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(self.secure, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._is_over:
                if any(key.fileobj is self._wake for key, _ in selector.select(0.05)):
                    self._wake.recv(4096)
                with self._lock, suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    while self._outbox:
                        del self._outbox[: self.secure.send(self._outbox)]
                    if self._is_done_saying:
                        socket.socket.shutdown(self.secure, socket.SHUT_WR)
                        self._is_done_saying = False
                with suppress(ssl.SSLWantReadError):
                    while part := self.secure.recv(1 << 16):
                        received += part
                        self._take(received)
                    return

    def _take(self, received: bytearray) -> None:
        while len(received) >= START_BYTES:
            length = START_BYTES + read_start(received[:START_BYTES])[1]
            if len(received) < length:
                return
            self.frames.append(bytes(received[:length]))
            del received[:length]

    def send(self, *frames: bytes) -> None:
        with self._lock:
            self._outbox += b"".join(frames)
        self._alarm.send(b"!")

    def half_close(self) -> None:
        self._is_done_saying = True
        self._alarm.send(b"!")

    def close(self) -> None:
        self._is_over = True
        self._alarm.send(b"!")
        self._thread.join()
        for end in (self.secure, self._wake, self._alarm):
            end.close()

    def wait_for(self, kind: Frame) -> dict[str, JsonValue]:
        """Waits for a frame of a kind; returns its body."""
        found = eventually(
            lambda: next((frame for frame in self.frames if kind_of(frame) is kind), None),
            f"a {kind.name} frame",
        )
        assert found is not None
        return body_of(found)

    def task(self) -> str:
        """Waits for a task; returns its id."""
        header = self.wait_for(Frame.TASK)["header"]
        assert isinstance(header, dict)
        return str(header["id"])

    def end(self) -> tuple[str, str]:
        """Waits until the server has ended the connection; returns outcome and reason, if said."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        ends = [body_of(frame) for frame in self.frames if kind_of(frame) is Frame.END]
        return (str(ends[0]["outcome"]), str(ends[0]["reason"])) if ends else ("", "")


@contextmanager
def raw_stream(kit: StartupKit, *, anonymous: bool = False) -> Iterator[RawStream]:
    """Opens a connection that shows the kit's certificate, or none."""
    context = kit.client_context()
    if anonymous:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(kit.ca)
    server = kit.servers[0]
    raw = socket.create_connection((server.host, server.port), PATIENCE_S)
    stream = RawStream(context.wrap_socket(raw, server_hostname=kit.job_name(JOB)))
    try:
        yield stream
    finally:
        stream.close()


def hello(**changes: object) -> bytes:
    body = {"protocol": PROTOCOL_VERSION, "job": JOB, "epoch": 0, "holding": [], "kinds": ["train"]}
    return control(Frame.HELLO, {**body, **changes})
