"""The gateway as a process of its own, between TLS clients and TLS servers."""

import asyncio
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from prefect_federated.agents.addresses import Address, listen
from prefect_federated.agents.gateway import Gateway
from prefect_federated.agents.routes import Routes
from prefect_federated.tasks.labels import ENDPOINT
from tests.agents.network import (
    Federation,
    Process,
    StubApi,
    accepting,
    eventually,
    free_port,
    gateway_process,
    greeting_endpoint,
    stub_api,
    tls,
)

JOB = "3f0c7a52-6d0e-4a38-9a3d-5a4c1f0e9b61"


@dataclass
class Running:
    """A gateway in front of a stub of the API."""

    process: Process
    port: int
    api: StubApi
    heart: Federation

    def connect(self, name: str | None) -> ssl.SSLSocket:
        return tls(self.heart.kit("site-1"), self.port, name)


@pytest.fixture
def gateway(heart: Federation) -> Iterator[Running]:
    kit = heart.kit("server-1")
    with stub_api(kit) as api, gateway_process(kit, api.port) as (process, port):
        yield Running(process, port, api, heart)


def is_api(connection: ssl.SSLSocket) -> bool:
    with connection:
        connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: api.heart\r\n\r\n")
        return connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_connection_that_names_a_job_reaches_its_endpoint(gateway: Running) -> None:
    with greeting_endpoint(gateway.heart.kit("server-1"), b"job!") as endpoint:
        gateway.api.labels[JOB] = {ENDPOINT: f"127.0.0.1:{endpoint}"}
        with gateway.connect(f"{JOB}.jobs.heart") as connection:
            assert connection.recv(4) == b"job!"
            connection.sendall(b"x" * 300_000)
            received = 0
            while received < 300_000:
                received += len(connection.recv(65536))


@pytest.mark.parametrize(
    "name", ["api.heart", None, "nonsense.jobs.heart", f"{JOB}.jobs.lung", f"x.{JOB}.jobs.heart"]
)
def test_a_connection_that_names_no_job_reaches_the_api(gateway: Running, name: str | None) -> None:
    context = gateway.heart.kit("site-1").client_context()
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as raw:
        assert is_api(context.wrap_socket(raw, server_hostname=name))


def test_the_certificate_is_that_of_the_endpoint_and_not_the_gateways(gateway: Running) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        gateway.connect("api.lung")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "knows no such flow run"),
        ({}, "has no endpoint now"),
        ({ENDPOINT: "nowhere"}, "'nowhere' is not an address"),
        ({ENDPOINT: "10.255.255.1:80"}, "not on a host that this gateway dials"),
        ({ENDPOINT: "127.0.0.1:1"}, "127.0.0.1:1 cannot be reached"),
    ],
)
def test_a_job_that_cannot_be_reached_is_closed_at_once_with_a_reason_in_the_log(
    gateway: Running, labels: dict[str, str] | None, reason: str
) -> None:
    if labels is not None:
        gateway.api.labels[JOB] = labels
    begin = time.monotonic()
    with pytest.raises(OSError):
        gateway.connect(f"{JOB}.jobs.heart")
    assert time.monotonic() - begin < 5
    gateway.process.line(rf"asked for {JOB}\.jobs\.heart: .*{reason}")
    assert is_api(gateway.connect("api.heart"))


def test_a_job_that_moved_is_found_again(gateway: Running) -> None:
    kit = gateway.heart.kit("server-1")

    def greeting() -> bytes:
        with gateway.connect(f"{JOB}.jobs.heart") as connection:
            return connection.recv(10)

    with greeting_endpoint(kit, b"first") as first, greeting_endpoint(kit, b"second") as second:
        gateway.api.labels[JOB] = {ENDPOINT: f"127.0.0.1:{first}"}
        assert greeting() == b"first"
        gateway.api.labels[JOB] = {ENDPOINT: f"127.0.0.1:{second}"}
        eventually(lambda: greeting() == b"second", "the new route")


def test_many_connections_at_once_cost_one_lookup(gateway: Running) -> None:
    with greeting_endpoint(gateway.heart.kit("server-1"), b"job!") as endpoint:
        gateway.api.labels[JOB] = {ENDPOINT: f"127.0.0.1:{endpoint}"}
        begin = time.monotonic()
        for _ in range(10):
            with gateway.connect(f"{JOB}.jobs.heart") as connection:
                assert connection.recv(4) == b"job!"
        seconds = time.monotonic() - begin
    assert len(gateway.api.requests) <= 1 + seconds


def test_the_gateway_outlives_the_api(heart: Federation) -> None:
    kit, api_port = heart.kit("server-1"), free_port()
    with gateway_process(kit, api_port) as (process, port):
        with pytest.raises(OSError):
            tls(heart.kit("site-1"), port, "api.heart")
        process.line(rf"127\.0\.0\.1:{api_port} cannot be reached")
        for _ in range(2):
            with stub_api(kit, api_port):
                assert is_api(tls(heart.kit("site-1"), port, "api.heart"))


def test_a_thousand_idle_connections_leave_room_for_work(heart: Federation) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    outgoing = ssl.MemoryBIO()
    context = heart.kit("site-1").client_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="api.heart").do_handshake()
    hello = outgoing.read()
    accepted: list[socket.socket] = []

    def accept(connection: socket.socket) -> None:
        accepted.append(connection)
        connection.sendall(connection.recv(65536))

    clients: list[socket.socket] = []
    try:
        with (
            accepting(accept) as api_port,
            gateway_process(heart.kit("server-1"), api_port) as (process, port),
        ):
            for _ in range(1000):
                client = socket.create_connection(("127.0.0.1", port), timeout=20)
                client.sendall(hello)
                clients.append(client)
            assert all(client.recv(65536) for client in clients)
            itself = psutil.Process(process.pid)
            assert itself.num_fds() < 2100
            assert itself.memory_info().rss < 150e6
            before = sum(itself.cpu_times()[:2])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as one_more:
                one_more.sendall(hello)
                assert one_more.recv(65536) == hello
            assert sum(itself.cpu_times()[:2]) - before < 0.1
    finally:
        for connection in (*clients, *accepted):
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sigterm_ends_it_cleanly_with_connections_open(heart: Federation) -> None:
    kit = heart.kit("server-1")
    with stub_api(kit) as api, gateway_process(kit, api.port) as (process, port):
        with tls(heart.kit("site-1"), port, "api.heart") as connection:
            assert process.stop() == 0
            assert connection.recv(1) == b""
        assert process.lines[-1].endswith("stopped")


def test_a_port_that_is_taken_is_named_in_the_error(heart: Federation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "prefect_federated.agents.gateway"),
                *("--kit", heart.kit("server-1").folder),
                *("--listen", f"127.0.0.1:{port}", "--api", "127.0.0.1:1"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "choose another port" in ended.stderr
    assert "Traceback" not in ended.stderr


def in_process(heart: Federation, *, max_waiting: int = 256, timeout_s: float = 10) -> Gateway:
    return Gateway(
        listen(Address("127.0.0.1", 0)),
        Routes(heart.kit("server-1"), Address("127.0.0.1", 1)),
        max_waiting=max_waiting,
        client_hello_timeout_s=timeout_s,
    )


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


def test_a_client_that_says_nothing_is_closed(heart: Federation) -> None:
    async def run() -> None:
        gateway = in_process(heart, timeout_s=0.05)
        serving = asyncio.create_task(gateway.serve())
        reader, writer = await asyncio.open_connection(gateway.address.host, gateway.address.port)
        writer.write(b"\x16\x03")
        async with asyncio.timeout(10):
            assert await ended(reader)
        assert not serving.done()
        serving.cancel()

    asyncio.run(run())


def test_past_the_limit_the_client_that_waits_longest_is_closed(heart: Federation) -> None:
    async def run() -> None:
        gateway = in_process(heart, max_waiting=3)
        serving = asyncio.create_task(gateway.serve())
        clients = [
            await asyncio.open_connection(gateway.address.host, gateway.address.port)
            for _ in range(3)
        ]
        newest, _ = await asyncio.open_connection(gateway.address.host, gateway.address.port)
        async with asyncio.timeout(10):
            assert await ended(clients[0][0])
        assert not any(client[0].at_eof() for client in clients[1:])
        assert not newest.at_eof()
        serving.cancel()

    asyncio.run(run())


def test_it_starts_without_importing_prefect() -> None:
    code = "import sys, prefect_federated.agents.gateway; print('prefect' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout == "False\n"


def test_garbage_gets_no_http_byte(gateway: Running) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = b""
        try:
            while part := connection.recv(1000):
                received += part
        except ConnectionResetError:
            pass
    assert b"HTTP" not in received
