"""The one open port: carries TLS connections to the API and to the jobs' endpoints.

It reads the name in a connection's ClientHello and moves the bytes; it holds no session keys, so
TLS is end to end and each side checks the other's certificate itself. HAProxy or nginx
(`ssl_preread`) can take its place.

Run as `python -m prefect_federated.agents.gateway --kit DIR --listen HOST:PORT --api HOST:PORT`.
"""

import argparse
import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect_federated.agents.addresses import Address, listen
from prefect_federated.agents.client_hello import read_client_hello, server_name
from prefect_federated.agents.processes import end_with_parent
from prefect_federated.agents.relay import prepare, relay
from prefect_federated.agents.routes import Routes
from prefect_federated.errors import ConnectionFailed, FederatedError
from prefect_federated.kits import Role, load_kit

MAX_WAITING = 256
"""Connections that may still owe their ClientHello; one more closes the one that waits longest."""
CLIENT_HELLO_TIMEOUT_S = 10.0
DIAL_TIMEOUT_S = 10.0
_DESCRIPTORS = 65536
_OUT_OF_DESCRIPTORS_PAUSE_S = 0.1

log = logging.getLogger("prefect_federated.gateway")


class Gateway:
    """Accepts connections on one listening socket and carries each where its TLS name leads.

    Args:
        listener: A listening TCP socket; the caller closes it.
        routes: Says where a name leads.
        max_waiting: Connections that may still owe their ClientHello.
        client_hello_timeout_s: Seconds that a client has to say where it wants to go.
    """

    def __init__(
        self,
        listener: socket.socket,
        routes: Routes,
        *,
        max_waiting: int = MAX_WAITING,
        client_hello_timeout_s: float = CLIENT_HELLO_TIMEOUT_S,
    ) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._routes = routes
        self._max_waiting = max_waiting
        self._client_hello_timeout_s = client_hello_timeout_s
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(*self._listener.getsockname()[:2])

    async def serve(self) -> None:
        """Carries connections until it is cancelled; then closes all of them."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    client, peer = await loop.sock_accept(self._listener)
                except OSError as error:
                    log.error("cannot accept connections: %s", error)
                    await asyncio.sleep(_OUT_OF_DESCRIPTORS_PAUSE_S)
                    continue
                self._start(client, f"{peer[0]}:{peer[1]}")
                await asyncio.sleep(0)  # in a burst, what has arrived is read before the next
        finally:
            open_tasks = list(self._tasks)
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)

    def _start(self, client: socket.socket, peer: str) -> None:
        if len(self._waiting) >= self._max_waiting:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.cancel()
        task = asyncio.create_task(self._carry(client, peer))
        self._tasks.add(task)
        self._waiting[task] = None
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket, peer: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        with client:
            try:
                prepare(client)
                hello = await read_client_hello(client, self._client_hello_timeout_s)
            except OSError as error:  # TimeoutError and ConnectionError among them
                log.debug("%s sent no ClientHello: %s", peer, error or "too slow")
                return
            finally:
                self._waiting.pop(task, None)
            name = server_name(hello)
            try:
                server = await self._dial(await self._routes.find(name))
            except ConnectionFailed as error:
                log.warning("%s asked for %s: %s", peer, name or "no name", error)
                return
            with server:
                try:
                    await asyncio.get_running_loop().sock_sendall(server, hello)
                    await relay(client, server)
                except OSError as error:
                    log.debug("%s, %s: %s", peer, name, error)

    async def _dial(self, address: Address) -> socket.socket:
        loop = asyncio.get_running_loop()
        reason: object = "no address"
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
                for family, kind, protocol, _, place in found:
                    server = socket.socket(family, kind, protocol)
                    try:
                        prepare(server)
                        await loop.sock_connect(server, place)
                    except BaseException as error:
                        server.close()
                        if not isinstance(error, OSError):
                            raise
                        reason = error
                    else:
                        return server
        except TimeoutError:
            reason = f"no answer in {DIAL_TIMEOUT_S:g} s"
        except socket.gaierror as error:
            reason = error
        raise ConnectionFailed(f"{address} cannot be reached: {reason}")


async def run(folder: Path, listen_on: Address, api: Address, hosts: Sequence[str]) -> None:
    """Runs the gateway until SIGTERM or SIGINT.

    Raises:
        KitError: the folder holds no server's kit.
        ConfigurationError: the port is taken.
    """
    kit = load_kit(folder, role=Role.SERVER)
    _raise_descriptor_limit()
    routes = Routes(kit, api, hosts)
    with listen(listen_on) as listener:
        gateway = Gateway(listener, routes)
        serving = asyncio.create_task(gateway.serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        log.info("listening on %s, API at %s", gateway.address, api)
        try:
            await serving
        except asyncio.CancelledError:
            log.info("stopped")
        finally:
            await routes.close()


def _raise_descriptor_limit() -> None:
    """A connection takes two descriptors, four more while bytes are under way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the gateway as its command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prefect_federated.agents.gateway")
    parser.add_argument("--kit", type=Path, required=True, help="folder of the server's kit")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--api", required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--endpoint-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a further host that jobs' endpoints may be on; may be given several times",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s gateway: %(message)s", level="INFO")
    logging.getLogger("httpx").setLevel("WARNING")
    try:
        listen_on, api = Address.parse(options.listen), Address.parse(options.api)
        asyncio.run(run(options.kit, listen_on, api, options.endpoint_host))
    except FederatedError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
