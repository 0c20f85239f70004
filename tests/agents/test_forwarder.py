"""The forwarder between plain HTTP clients and servers under mutual TLS."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import websockets
from websockets.sync.server import ServerConnection, serve

from prefect_federated.agents import dialer, local_clients
from prefect_federated.agents.forwarder import Forwarder
from prefect_federated.errors import ConfigurationError, ConnectionFailed, KitError
from prefect_federated.kits import StartupKit
from tests.agents.network import Federation, accepting, free_port, stub_api

API_NAMES = ("api.heart", "*.jobs.heart")


def forwarding(
    kit: StartupKit, use: Callable[[Forwarder], Awaitable[None]], patience_s: float = 0
) -> None:
    """Runs `use` with an open forwarder."""

    async def run() -> None:
        async with asyncio.timeout(30), Forwarder(kit, patience_s=patience_s) as forwarder:
            await use(forwarder)

    asyncio.run(run())


def client(forwarder: Forwarder) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=forwarder.url, trust_env=False, timeout=20)


def test_http_passes_untouched(heart: Federation) -> None:
    with stub_api(heart.kit("server-1")) as api:

        async def use(forwarder: Forwarder) -> None:
            async with client(forwarder) as http:
                assert (await http.get("/health")).json() is True
                assert (await http.get("/flow_runs/none")).status_code == 404
                body = os.urandom(5_000_000)
                echoed = (await http.post("/echo", content=body)).json()
                assert echoed == {"size": len(body), "sum": sum(body)}

        forwarding(heart.kit("site-1", api.port), use)


@contextmanager
def websocket_echo(kit: StartupKit) -> Iterator[int]:
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0, ssl=kit.server_context(), max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def test_websockets_pass_untouched(heart: Federation) -> None:
    with websocket_echo(heart.kit("server-1")) as port:

        async def use(forwarder: Forwarder) -> None:
            address = forwarder.url.replace("http://", "ws://")
            async with websockets.connect(address, max_size=None, proxy=None) as connection:
                for message in ("hello", os.urandom(3_000_000)):
                    await connection.send(message)
                    assert await connection.recv() == message

        forwarding(heart.kit("site-1", port), use)


def test_a_server_that_is_down_gives_503_with_the_reason_and_one_line_in_the_log(
    heart: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    caplog.set_level(logging.INFO, "prefect_federated.forwarder")

    async def use(forwarder: Forwarder) -> None:
        async with client(forwarder) as http:
            for _ in range(4):
                answer = await http.post("/logs/", content=b"x" * 300_000)
                assert answer.status_code == 503
                assert f"127.0.0.1:{port} refuses connections" in answer.json()["detail"]
                assert answer.headers["Retry-After"] == "1"
            assert len(caplog.messages) == 1
            assert "server start" in caplog.messages[0]
            with stub_api(heart.kit("server-1"), port):
                assert (await http.get("/health")).status_code == 200
                assert (await http.get("/health")).status_code == 200
            assert caplog.messages[1:] == [f"server 'server-1' at 127.0.0.1:{port} is back"]

    forwarding(heart.kit("site-1", port), use)


def test_a_server_that_is_restarted_is_waited_for(heart: Federation) -> None:
    port = free_port()

    async def use(forwarder: Forwarder) -> None:
        async with client(forwarder) as http:
            asking = asyncio.create_task(http.get("/health"))
            while forwarder._trouble is None:
                await asyncio.sleep(0.01)
            with stub_api(heart.kit("server-1"), port):
                assert (await asking).status_code == 200
            assert forwarder._trouble is None

    forwarding(heart.kit("site-1", port), use, patience_s=20)


def test_an_api_that_is_down_behind_its_gateway_gives_503(heart: Federation) -> None:
    with accepting(lambda connection: connection.close()) as port:

        async def use(forwarder: Forwarder) -> None:
            async with client(forwarder) as http:
                answer = await http.get("/health")
                assert answer.status_code == 503
                assert "its API is not up (yet)" in answer.json()["detail"]

        forwarding(heart.kit("site-1", port), use)


def test_a_refused_certificate_gives_503_with_the_reason(
    heart: Federation, lung: Federation
) -> None:
    with stub_api(heart.kit("server-1")) as api:

        async def use(forwarder: Forwarder) -> None:
            async with client(forwarder) as http:
                answer = await http.get("/health")
                assert answer.status_code == 503
                assert "refuses the certificate" in answer.json()["detail"]

        forwarding(with_certificate_of(lung, heart.kit("site-1", api.port)), use)
        assert api.requests == []


def with_certificate_of(federation: Federation, kit: StartupKit) -> StartupKit:
    foreign = federation.kit("site-1")
    return replace(kit, certificate=foreign.certificate, private_key=foreign.private_key)


def complaint(kit: StartupKit, kind: type[Exception] = ConnectionFailed) -> str:
    """Returns what `check` says."""
    messages: list[str] = []

    async def use(forwarder: Forwarder) -> None:
        with pytest.raises(kind) as raised:
            await forwarder.check()
        messages.append(str(raised.value))

    forwarding(kit, use)
    return messages[0]


def test_check_finds_a_server_that_is_well(heart: Federation) -> None:
    with stub_api(heart.kit("server-1")) as api:

        async def use(forwarder: Forwarder) -> None:
            assert (await forwarder.check()).port == api.port

        forwarding(heart.kit("site-1", api.port), use)


def test_check_tells_that_nothing_listens(heart: Federation) -> None:
    port = free_port()
    said = complaint(heart.kit("site-1", port))
    assert f"server 'server-1' at 127.0.0.1:{port} refuses connections" in said
    assert "prefect-federated server start" in said
    assert "kit.json" in said


def test_check_tells_that_there_is_no_answer(
    heart: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "DIAL_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = complaint(heart.kit("site-1", silent.getsockname()[1]))
    assert "no answer in time" in said
    assert "firewall" in said


def test_check_tells_that_the_host_is_unknown(heart: Federation) -> None:
    kit = heart.kit("site-1", 1)
    unknown = replace(kit.servers[0], host="server.invalid")
    assert "'server.invalid' is not known" in complaint(replace(kit, servers=(unknown,)))


def test_check_tells_that_the_server_is_of_another_federation(
    heart: Federation, lung: Federation
) -> None:
    with stub_api(lung.kit("server-1")) as api:
        said = complaint(heart.kit("site-1", api.port))
    assert "not signed by the CA of federation 'heart'" in said
    assert "kit.json" in said


def test_check_tells_that_the_server_has_another_name(heart: Federation, tmp_path: Path) -> None:
    kit = heart.reissued(heart.kit("server-1"), tmp_path, hosts=("elsewhere.example",))
    with stub_api(kit) as api:
        assert "without the name 'api.heart'" in complaint(heart.kit("site-1", api.port))


def test_check_tells_that_the_servers_certificate_has_expired(
    heart: Federation, tmp_path: Path
) -> None:
    kit = heart.reissued(heart.kit("server-1"), tmp_path, hosts=API_NAMES, days_ago=3)
    with stub_api(kit) as api:
        said = complaint(heart.kit("site-1", api.port))
    assert "expired" in said
    assert "The server needs a new kit" in said


def test_check_tells_that_our_certificate_is_of_another_federation(
    heart: Federation, lung: Federation
) -> None:
    with stub_api(heart.kit("server-1")) as api:
        kit = with_certificate_of(lung, heart.kit("site-1", api.port))
        said = complaint(kit, KitError)
    assert "refuses the certificate" in said
    assert "another federation" in said
    assert "'site-1'" in said


def test_check_tells_that_our_certificate_has_expired(heart: Federation, tmp_path: Path) -> None:
    with stub_api(heart.kit("server-1")) as api:
        kit = heart.reissued(heart.kit("site-1", api.port), tmp_path, days_ago=3)
        assert "it has expired" in complaint(kit, KitError)


def test_check_tells_that_something_else_listens(heart: Federation) -> None:
    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with accepting(answer) as port:
        assert "does not speak TLS 1.3" in complaint(heart.kit("site-1", port))


def test_the_second_server_serves_when_the_first_is_down(heart: Federation) -> None:
    dead = free_port()
    with stub_api(heart.kit("server-1")) as api:

        async def use(forwarder: Forwarder) -> None:
            async with client(forwarder) as http:
                assert (await http.get("/health")).status_code == 200
            assert (await forwarder.check()).name == "server-2"

        forwarding(heart.kit("site-1", dead, api.port), use)


def test_all_servers_down_gives_a_reason_for_each(heart: Federation) -> None:
    said = complaint(heart.kit("site-1", free_port(), free_port()))
    assert "'server-1'" in said
    assert "'server-2'" in said


def test_waiting_ends_when_the_server_comes_up(heart: Federation) -> None:
    port = free_port()

    async def use(forwarder: Forwarder) -> None:
        waiting = asyncio.create_task(forwarder.wait_until_reachable())
        while forwarder._trouble is None:
            await asyncio.sleep(0.01)
        with stub_api(heart.kit("server-1"), port):
            assert (await waiting).port == port

    forwarding(heart.kit("site-1", port), use)


def test_waiting_gives_up_with_the_last_reason(heart: Federation) -> None:
    async def use(forwarder: Forwarder) -> None:
        with pytest.raises(ConnectionFailed, match="refuses connections"):
            await forwarder.wait_until_reachable(timeout_s=0.1)

    forwarding(heart.kit("site-1", free_port()), use)


def test_waiting_does_not_go_on_with_a_kit_that_is_refused(
    heart: Federation, lung: Federation
) -> None:
    with stub_api(heart.kit("server-1")) as api:

        async def use(forwarder: Forwarder) -> None:
            with pytest.raises(KitError):
                await forwarder.wait_until_reachable()

        forwarding(with_certificate_of(lung, heart.kit("site-1", api.port)), use)


def test_another_user_gets_nothing(heart: Federation, caplog: pytest.LogCaptureFixture) -> None:
    with stub_api(heart.kit("server-1")) as api:

        async def run() -> None:
            kit, stranger = heart.kit("site-1", api.port), os.geteuid() + 1
            async with Forwarder(kit, user_id=stranger) as forwarder, client(forwarder) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get("/health")

        asyncio.run(run())
        assert api.requests == []
    assert f"refused a connection of user id {os.geteuid()}" in caplog.text


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_user_of_a_connection_is_found(family: socket.AddressFamily) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(family) as ours:
        address = listener.getsockname()
        mapped = family == socket.AF_INET6
        ours.connect((f"::ffff:{address[0]}" if mapped else address[0], address[1]))
        accepted, peer = listener.accept()
        with accepted:
            assert local_clients.user_of(peer, address) == os.geteuid()
        assert local_clients.user_of(("127.0.0.1", 1), address) is None


def test_a_port_that_is_taken_is_named(heart: Federation) -> None:
    async def run(port: int) -> None:
        async with Forwarder(heart.kit("site-1"), port):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*another port"):
            asyncio.run(run(port))


def test_prefect_is_kept_from_using_a_proxy(
    heart: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")

    kit = heart.kit("site-1")

    async def use(forwarder: Forwarder) -> None:
        assert forwarder.environment() == {
            "PREFECT_API_URL": forwarder.url,
            "PREFECT_UI_URL": f"https://{kit.servers[0]}",
            "PREFECT_FEDERATED_KIT": str(kit.folder),
            "NO_PROXY": "intranet.example,127.0.0.1",
            "no_proxy": "intranet.example,127.0.0.1",
        }

    forwarding(kit, use)
