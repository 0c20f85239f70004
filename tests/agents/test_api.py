"""The API process: identities on requests, and the real Prefect server behind the real gateway."""

import asyncio
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
import numpy as np
import pytest
import websockets
from prefect.client.orchestration import PrefectClient
from prefect.flows import flow
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_federated.agents.api import guarded, prepare_environment, server
from prefect_federated.agents.forwarder import Forwarder
from prefect_federated.agents.peers import CertifiedOnly, identity_in
from prefect_federated.agents.registration import SiteRegistration
from prefect_federated.errors import JobEnded
from prefect_federated.kits import Identity, Role, StartupKit
from prefect_federated.messages import Message, Update
from prefect_federated.tasks.labels import ENDPOINT
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.tls_client import TlsLink
from prefect_federated.transport.tls_server import TlsEndpoint
from tests.agents.network import (
    PATIENCE_S,
    Federation,
    Process,
    eventually,
    free_port,
    gateway_process,
    tls,
)

GET_HEALTH = b"GET /api/health HTTP/1.1\r\nHost: api.heart\r\nConnection: close\r\n\r\n"


@dataclass
class Running:
    """A gateway and the API behind it."""

    heart: Federation
    port: int

    def kit(self, name: str) -> StartupKit:
        return self.heart.kit(name, self.port)

    @asynccontextmanager
    async def prefect(self, name: str) -> AsyncIterator[PrefectClient]:
        """Yields Prefect's own client, behind the forwarder of a participant."""
        async with Forwarder(self.kit(name)) as forwarder, PrefectClient(forwarder.url) as client:
            yield client


@pytest.fixture(scope="module")
def running(heart: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("prefect")
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
    }
    kit, api_port = heart.kit("server-1"), free_port()
    api = Process(
        *("-m", "prefect_federated.agents.api", "--kit", str(kit.folder)),
        *("--listen", f"127.0.0.1:{api_port}"),
        environment=environment,
    )
    try:
        with gateway_process(kit, api_port) as (_, port):
            found = Running(heart, port)

            async def wait() -> None:
                async with Forwarder(found.kit("alice")) as forwarder:
                    await forwarder.wait_until_reachable(timeout_s=60)

            asyncio.run(wait())
            yield found
            assert api.stop() == 0
            assert api.lines[-1].endswith("stopped")
    finally:
        api.stop()


def test_prefects_own_client_works_for_a_user(running: Running) -> None:
    async def run() -> None:
        async with running.prefect("alice") as client:
            assert await client.api_healthcheck() is None
            assert (await client.read_work_pools()) is not None

    asyncio.run(run())


def test_the_ui_asks_the_host_that_it_came_from(running: Running) -> None:
    async def run() -> None:
        async with Forwarder(running.kit("alice")) as forwarder, httpx.AsyncClient() as http:
            root = forwarder.url.removesuffix("/api")
            assert (await http.get(f"{root}/ui-settings")).json()["api_url"] == "/api"
            assert "<title>" in (await http.get(f"{root}/")).text

    asyncio.run(run())


def test_a_sites_first_request_makes_its_pool_and_deployment(running: Running) -> None:
    async def run() -> None:
        async with running.prefect("site-1") as site:
            await asyncio.gather(*(site.api_healthcheck() for _ in range(10)))
        async with running.prefect("alice") as client:
            pool = await client.read_work_pool("site-1")
            assert pool.type == "federated-site"
            deployment = await client.read_deployment_by_name("join/site-1")
            assert deployment.work_pool_name == "site-1"
            assert deployment.entrypoint == "prefect_federated.agents.site_flow.join"
            assert deployment.tags == ["federated-site"]
            assert deployment.description is not None
            assert "City Hospital" in deployment.description
            assert not deployment.pull_steps
            assert not deployment.enforce_parameter_schema

    asyncio.run(run())


def test_a_user_gets_no_pool(running: Running) -> None:
    async def run() -> None:
        async with running.prefect("alice") as client:
            names = {pool.name for pool in await client.read_work_pools()}
            assert "alice" not in names

    asyncio.run(run())


def test_events_reach_a_site_over_a_websocket(running: Running) -> None:
    async def run() -> None:
        async with Forwarder(running.kit("site-1")) as forwarder:
            url = forwarder.url.replace("http://", "ws://") + "/events/out"
            async with websockets.connect(
                url, subprotocols=[websockets.Subprotocol("prefect")], proxy=None
            ) as events:
                await events.send('{"type": "auth", "token": null}')
                assert "auth_success" in str(await events.recv())

    asyncio.run(run())


def test_a_job_is_reached_by_the_label_on_its_flow_run(running: Running) -> None:
    @flow
    def job() -> None:
        pass

    async def create() -> UUID:
        async with running.prefect("server-1") as client:
            return (await client.create_flow_run(job)).id

    async def publish(run: UUID, address: str) -> None:
        async with running.prefect("server-1") as client:
            await client.update_flow_run_labels(run, {ENDPOINT: address})

    run = asyncio.run(create())
    hub = Hub(str(run), 1, ("site-1", "site-2"))
    with TlsEndpoint(hub, running.heart.kit("server-1")) as endpoint, ExitStack() as links:
        asyncio.run(publish(run, endpoint.address))
        for site in hub.sites:
            link = links.enter_context(TlsLink(running.kit(site), str(run)))
            link.attach(("train",))
            threading.Thread(target=double_until_the_end, args=(link,), daemon=True).start()
        eventually(lambda: len(hub.attached()) == 2, "both sites attach")
        call = hub.call("train", Message({}, {"w": np.ones(400_000)}), hub.sites, CallTerms())
        sums = {
            reply.site: float(reply.tensors["w"].sum())
            for reply in call
            if isinstance(reply, Update)
        }
        assert sums == {"site-1": 800_000, "site-2": 800_000}
        hub.end("completed", "done")


def double_until_the_end(link: TlsLink) -> None:
    with suppress(JobEnded):
        while True:
            task = link.receive()
            link.reply(task, Update({name: 2 * array for name, array in task.model.items()}))


def bytes_without_trust(port: int, context: ssl.SSLContext) -> bytes:
    """Returns what a stranger's client receives after TLS let it send a request."""
    received = b""
    with suppress(ssl.SSLError, ConnectionError):
        raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        with raw, context.wrap_socket(raw, server_hostname="api.heart") as connection:
            connection.sendall(GET_HEALTH)
            while part := connection.recv(1000):
                received += part
    return received


def test_a_stranger_gets_no_http_byte(running: Running, lung: Federation) -> None:
    foreign = lung.kit("alice").client_context()
    foreign.check_hostname = False
    foreign.load_verify_locations(running.kit("alice").ca)
    assert bytes_without_trust(running.port, foreign) == b""
    nameless = ssl.create_default_context(cafile=str(running.kit("alice").ca))
    assert bytes_without_trust(running.port, nameless) == b""
    known = running.kit("alice").client_context()
    assert b"200 OK" in bytes_without_trust(running.port, known)


def test_a_certificate_without_a_known_role_is_refused(running: Running, tmp_path: Path) -> None:
    kit = running.heart.reissued(running.kit("alice"), tmp_path, role="janitor")

    async def run() -> None:
        async with Forwarder(kit) as forwarder, httpx.AsyncClient() as http:
            answer = await http.get(f"{forwarder.url}/health")
            assert answer.status_code == 403
            assert "'janitor'" in answer.json()["detail"]
            url = forwarder.url.replace("http://", "ws://")
            with pytest.raises(websockets.InvalidStatus, match="403"):
                await websockets.connect(f"{url}/events/out", proxy=None)

    asyncio.run(run())


def test_a_port_that_is_taken_is_named_in_the_error(heart: Federation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "prefect_federated.agents.api"),
                *("--kit", heart.kit("server-1").folder, "--listen", f"127.0.0.1:{port}"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@contextmanager
def serving(app: ASGIApp, kit: StartupKit) -> Iterator[int]:
    """Yields the port of an app under the API's own uvicorn, in a thread."""
    api = server(app, kit)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=api.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        api.should_exit = True
        thread.join()
        listener.close()


async def who_am_i(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers each request, and each websocket message, with the name of who asks."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    name = identity_in(scope).name
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": name})


def test_each_request_and_websocket_has_its_own_identity(heart: Federation) -> None:
    async def ask(name: str, port: int) -> None:
        async with Forwarder(heart.kit(name, port)) as forwarder:
            url = forwarder.url.replace("http://", "ws://")
            async with (
                websockets.connect(url, proxy=None) as connection,
                httpx.AsyncClient() as http,
            ):
                for _ in range(5):
                    await connection.send("who?")
                    assert await connection.recv() == name
                    assert (await http.get(forwarder.url)).text == name

    async def run(port: int) -> None:
        await asyncio.gather(*(ask(name, port) for name in ("alice", "site-1", "site-2")))

    with serving(CertifiedOnly(who_am_i), heart.kit("server-1")) as port:
        asyncio.run(run(port))


def test_a_reused_port_never_carries_the_last_ones_identity(heart: Federation) -> None:
    request = b"GET / HTTP/1.1\r\nHost: api.heart\r\n\r\n"
    own_port = free_port()
    with serving(CertifiedOnly(who_am_i), heart.kit("server-1")) as port:
        for name in ("site-1", "alice", "site-2", "site-1"):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.settimeout(PATIENCE_S)
            raw.bind(("127.0.0.1", own_port))
            raw.connect(("127.0.0.1", port))
            context = heart.kit(name).client_context()
            with raw, context.wrap_socket(raw, server_hostname="api.heart") as connection:
                connection.sendall(request)
                received = b""
                while not received.endswith(b"0\r\n\r\n"):
                    received += connection.recv(1000)
                assert f"\r\n{name}\r\n".encode() in received


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://api.heart"}, 200),
        ({"Host": "127.0.0.1:4200", "Origin": "http://127.0.0.1:4200"}, 200),
        ({"Host": "[::1]:4200"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example:4200", "Origin": "http://evil.example:4200"}, 403),
        ({"Host": "evil.example:4200"}, 403),
        ({"Host": "[nonsense"}, 403),
    ],
)
def test_pages_of_other_web_sites_are_refused(
    heart: Federation, headers: dict[str, str], status: int
) -> None:
    lines = [f"{name}: {value}" for name, value in ({"Host": "api.heart"} | headers).items()]
    request = "\r\n".join(["GET / HTTP/1.1", *lines, "Connection: close", "", ""])
    with (
        serving(guarded(who_am_i, heart.kit("server-1")), heart.kit("server-1")) as port,
        tls(heart.kit("alice"), port, "api.heart") as connection,
    ):
        connection.sendall(request.encode())
        assert connection.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())


class Unwilling:
    """An API that refuses work pools at first."""

    def __init__(self) -> None:
        self.refusals_left = 1
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        refuses = scope["path"] == "/api/work_pools/" and self.refusals_left > 0
        self.refusals_left -= refuses
        status, body = (500, b"the disk is full") if refuses else (200, b'{"id": "1"}')
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


def test_a_registration_that_fails_is_answered_with_503_and_tried_again() -> None:
    api = Unwilling()
    guarded_app = SiteRegistration(api)
    site = Identity("site-9", "City Hospital", Role.SITE)

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        await guarded_app({**scope, "state": {"identity": site}}, receive, send)

    async def run() -> None:
        transport = httpx.ASGITransport(outside)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
            first = await http.get("/hello")
            assert first.status_code == 503
            assert "the disk is full" in first.json()["detail"]
            assert "/hello" not in api.asked
            later = await asyncio.gather(*(http.get("/hello") for _ in range(5)))
            assert {answer.status_code for answer in later} == {200}

    asyncio.run(run())
    assert api.asked.count("/api/work_pools/") == 2
    assert api.asked.count("/api/deployments/") == 1
    assert api.asked.count("/hello") == 5


def test_the_environment_keeps_what_the_parent_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.example/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_UI_API_URL", "https://ui.example/api")
    monkeypatch.delenv("PREFECT_SERVER_ANALYTICS_ENABLED", raising=False)
    prepare_environment()
    assert "PREFECT_API_URL" not in os.environ
    assert os.environ["PREFECT_SERVER_UI_API_URL"] == "https://ui.example/api"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["PREFECT_SERVER_UI_STATIC_DIRECTORY"] == str(tmp_path / "ui")
    for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_UI_STATIC_DIRECTORY"):
        monkeypatch.delenv(name)
