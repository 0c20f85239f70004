"""What the network tests share: provisioned federations, and small servers under mutual TLS."""

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from prefect_federated.kits import Identity, Role, ServerAddress, StartupKit, load_kit
from prefect_federated.provisioning import provision
from prefect_federated.provisioning.certificates import CertificateAuthority, private_key_pem

PASSPHRASE = b"correct horse battery"
PATIENCE_S = 90.0  # a bound, not a pause: Prefect records late while its database is busy
FEDERATION = """\
name: {name}
servers:
  - {{name: server-1, address: "127.0.0.1:8443", organisation: University}}
sites:
  - {{name: site-1, organisation: City Hospital}}
  - {{name: site-2, organisation: Country Hospital}}
users:
  - {{name: alice, organisation: University, role: project_admin}}
"""

Found = TypeVar("Found")


def eventually(find: Callable[[], Found | None], what: str) -> Found:
    """Waits until `find()` returns something true, and returns that."""
    end, pause_s = time.monotonic() + PATIENCE_S, 0.02
    while not (found := find()):
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE_S:g} s"
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.5)  # a server that is asked all the time gets to nothing
    return found


@dataclass(frozen=True)
class Federation:
    """A provisioned federation: its kits, and its CA to issue further certificates."""

    workspace: Path

    @classmethod
    def provision(cls, name: str, folder: Path) -> "Federation":
        file = folder / f"{name}.yaml"
        file.write_text(FEDERATION.format(name=name))
        provision(file, folder / name, passphrase=PASSPHRASE)
        return cls(folder / name)

    def kit(self, name: str, *ports: int) -> StartupKit:
        """Returns a kit; with ports, its servers are server-1, server-2, ... on 127.0.0.1."""
        kit = load_kit(self.workspace / "kits" / name)
        servers = tuple(
            ServerAddress(f"server-{number}", "127.0.0.1", port)
            for number, port in enumerate(ports, start=1)
        )
        return replace(kit, servers=servers or kit.servers)

    def reissued(
        self,
        kit: StartupKit,
        folder: Path,
        *,
        role: str = "server",
        hosts: tuple[str, ...] = (),
        days_ago: int = 0,
    ) -> StartupKit:
        """Returns a kit with another certificate of this CA, valid for a day from `days_ago`."""
        workspace = self.workspace / "ca"
        certificate = x509.load_pem_x509_certificate((workspace / "ca.crt").read_bytes())
        encrypted_key = (workspace / "ca.key").read_bytes()
        ca = CertificateAuthority.load(certificate, encrypted_key, PASSPHRASE)
        key = ec.generate_private_key(ec.SECP256R1())
        made_up_role = Role.SERVER if role == "server" else SimpleNamespace(value=role)
        identity = Identity(kit.identity.name, "University", cast(Role, made_up_role))
        begin = datetime.now(UTC) - timedelta(days=days_ago)
        issued = ca.issue(identity, key.public_key(), days=1, hosts=hosts, now=begin)
        paths = folder / "reissued.crt", folder / "reissued.key"
        paths[0].write_bytes(issued.public_bytes(Encoding.PEM))
        paths[1].write_bytes(private_key_pem(key))
        return replace(kit, certificate=paths[0], private_key=paths[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class StubApi:
    """An HTTP server under mutual TLS: health, flow runs with labels, and an echo of bodies."""

    def __init__(self, kit: StartupKit, port: int = 0) -> None:
        self.labels: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.is_away = False
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub.requests.append(self.path)
                job = self.path.rpartition("/")[2]
                if stub.is_away:
                    self._answer(503, {"detail": "Service Unavailable"})
                elif self.path == "/api/health":
                    self._answer(200, True)
                elif job in stub.labels:
                    self._answer(200, {"id": job, "labels": stub.labels[job]})
                else:
                    self._answer(404, {"detail": "Flow run not found"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(200, {"size": len(body), "sum": sum(body)})

            def _answer(self, status: int, content: object) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
                connection, peer = super().get_request()
                wrapped = context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                return wrapped, peer

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a peer that TLS refuses

        context = kit.server_context()
        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def stub_api(kit: StartupKit, port: int = 0) -> Iterator[StubApi]:
    api = StubApi(kit, port)
    try:
        yield api
    finally:
        api.close()


@contextmanager
def greeting_endpoint(kit: StartupKit, greeting: bytes) -> Iterator[int]:
    """Yields the port of a TLS server that greets each client and then echoes."""
    context = kit.server_context()

    def greet(connection: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as client:
            client.sendall(greeting)
            while part := client.recv(65536):
                client.sendall(part)

    with accepting(greet) as port:
        yield port


@contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yields a port on loopback where `serve` handles each connection in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def tls(kit: StartupKit, port: int, name: str | None) -> ssl.SSLSocket:
    """Returns a TLS connection to a port of 127.0.0.1 that asks for `name`."""
    context = kit.client_context()
    if name is None:
        context.check_hostname = False
    raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    try:
        return context.wrap_socket(raw, server_hostname=name)
    except BaseException:
        raw.close()
        raise


class Process:
    """A process of this project, whose error output is collected line by line."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stderr is not None
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()

    def _read(self, errors: IO[str]) -> None:
        for line in errors:
            self.lines.append(line.rstrip())

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, pattern: str) -> re.Match[str]:
        """Waits for a line that matches."""

        def find() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in list(self.lines))
            found = next((match for match in matches if match), None)
            assert found or self._process.poll() is None, f"ended: {self.lines}"
            return found

        return eventually(find, f"a line like {pattern!r}")

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        try:
            return self._process.wait(timeout=PATIENCE_S)
        finally:
            self._process.kill()
            self._reader.join()


@contextmanager
def gateway_process(kit: StartupKit, api_port: int, port: int = 0) -> Iterator[tuple[Process, int]]:
    """Yields a running gateway and its port."""
    process = Process(
        *("-m", "prefect_federated.agents.gateway", "--kit", str(kit.folder)),
        *("--listen", f"127.0.0.1:{port}", "--api", f"127.0.0.1:{api_port}"),
    )
    try:
        yield process, int(process.line(r"listening on 127\.0\.0\.1:(\d+)")[1])
    finally:
        process.stop()
