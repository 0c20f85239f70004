"""A loopback port whose bytes go to the federation's server over mutual TLS.

Prefect's client cannot show a client certificate; this does it for all that runs here: worker,
flow runs, the `prefect` command, notebooks. HTTP and websockets pass untouched. Only processes of
the same user may use the port, where the system tells whose a connection is (Linux).
"""

import asyncio
import contextlib
import json
import logging
import os
from types import TracebackType
from typing import Self

from prefect_federated.agents import local_clients
from prefect_federated.agents.addresses import Address, listen
from prefect_federated.agents.dialer import Dialer, ServerConnection
from prefect_federated.errors import ConnectionFailed, FederatedError
from prefect_federated.kits import ServerAddress, StartupKit

_PART_BYTES = 256 * 1024
_REASON_TIMEOUT_S = 2.0
_FIRST_DELAY_S, _LONGEST_DELAY_S, _DELAY_GROWTH = 0.5, 5.0, 1.5
_PATIENCE_S = 9.0  # websockets wait for 10 s
_DIAL_AGAIN_S = 0.5
_RETRY_AFTER_S = 1

log = logging.getLogger("prefect_federated.forwarder")


class Forwarder:
    """The forwarder of one kit; `async with` opens and closes its port.

    A client that half-closes its connection is taken to have closed it, as TLS streams do.

    Args:
        kit: A checked startup kit.
        port: Port on 127.0.0.1; 0 takes a free one.
        user_id: Whose processes may use the port; this process's own user if None.
        patience_s: Seconds for which a client waits while no server can be reached, before it is
            told so. Prefect's client by itself waits for 2, 4, 8, 16 and 32 s after each failure,
            which is an age where a server is restarted.

    Raises:
        KitError: the kit's files cannot be read any more.
    """

    def __init__(
        self,
        kit: StartupKit,
        port: int = 0,
        *,
        user_id: int | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._kit = kit
        self._patience_s = patience_s
        self._dialer = Dialer(kit)
        self._address = Address("127.0.0.1", port)
        self._user_id = os.geteuid() if user_id is None else user_id
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: str | None = None
        self._in_use: ServerAddress | None = None

    @property
    def url(self) -> str:
        """The `PREFECT_API_URL` of this port; known once the port is open."""
        return f"http://{self._address}/api"

    def environment(self) -> dict[str, str]:
        """Returns the variables that make Prefect use this port, past any HTTP proxy.

        Links to the UI lead to the server itself, which a browser reaches with its own certificate.
        """
        bypass = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
        hosts = [host for host in bypass.split(",") if host and host != self._address.host]
        no_proxy = ",".join([*hosts, self._address.host])
        return {
            "PREFECT_API_URL": self.url,
            "PREFECT_UI_URL": f"https://{self._kit.servers[0]}",
            "PREFECT_FEDERATED_KIT": str(self._kit.folder.resolve()),
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    async def __aenter__(self) -> Self:
        """Opens the port.

        Raises:
            ConfigurationError: the port is taken.
        """
        listener = listen(self._address)
        self._address = Address(*listener.getsockname()[:2])
        self._server = await asyncio.start_server(self._accept, sock=listener)
        if not local_clients.can_tell():
            log.warning("%s is open to every user of this machine", self._address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the port and all connections."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self) -> ServerAddress:
        """Asks a server for its API's health, once; returns the server that answered.

        Raises:
            ConnectionFailed: no server can be reached, or its API is not well; says why.
            KitError: the server refuses the kit's certificate.
        """
        return await self._dialer.check()

    async def wait_until_reachable(self, timeout_s: float | None = None) -> ServerAddress:
        """Asks again, ever more slowly, until a server answers; returns that server.

        A line is logged when the reason for waiting changes.

        Args:
            timeout_s: Seconds after which to give up; None for never.

        Raises:
            ConnectionFailed: time is up; the message is the last reason.
            KitError: the server refuses the kit's certificate, which waiting does not mend.
        """
        loop = asyncio.get_running_loop()
        give_up_at = None if timeout_s is None else loop.time() + timeout_s
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                server = await self.check()
            except ConnectionFailed as error:
                if give_up_at is not None and loop.time() + delay_s > give_up_at:
                    raise
                self._note_trouble(error)
            else:
                self._note_success(server)
                return server
            await asyncio.sleep(delay_s)
            delay_s = min(_DELAY_GROWTH * delay_s, _LONGEST_DELAY_S)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._is_allowed(writer):
                await self._forward(reader, writer)
        finally:
            writer.close()

    def _is_allowed(self, writer: asyncio.StreamWriter) -> bool:
        if not local_clients.can_tell():
            return True
        client = writer.get_extra_info("peername")
        user = local_clients.user_of(client[:2], (self._address.host, self._address.port))
        if user == self._user_id:
            return True
        whose = "a user who cannot be told any more" if user is None else f"user id {user}"
        log.warning(
            "refused a connection of %s to %s; only user id %d may use this forwarder",
            whose,
            self._address,
            self._user_id,
        )
        return False

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        failure: FederatedError | None
        try:
            connection = await self._connect()
        except FederatedError as error:
            failure = error
        else:
            failure = await self._carry(connection, reader, writer)
        if failure is not None:
            self._note_trouble(failure)
            await _answer_unavailable(reader, writer, failure)

    async def _connect(self) -> ServerConnection:
        """Returns a connection to a server; one that is not there is waited for, for a while."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        while True:
            try:
                return await self._dialer.connect()
            except ConnectionFailed as error:
                self._note_trouble(error)
                if loop.time() + _DIAL_AGAIN_S > give_up_at:
                    raise
            await asyncio.sleep(_DIAL_AGAIN_S)

    async def _carry(
        self,
        connection: ServerConnection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> FederatedError | None:
        """Moves bytes both ways until a side closes; returns why a request got no answer at all."""
        asked = answered = False

        async def upwards() -> None:
            nonlocal asked
            while part := await reader.read(_PART_BYTES):
                asked = True
                connection.writer.write(part)
                await connection.writer.drain()

        async def downwards() -> None:
            nonlocal answered
            while part := await connection.reader.read(_PART_BYTES):
                if not answered:
                    answered = True
                    self._note_success(connection.server)
                writer.write(part)
                await writer.drain()

        up, down = asyncio.create_task(upwards()), asyncio.create_task(downwards())
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not reader.at_eof():  # it is the server that went: let the reason arrive
                await asyncio.wait((down,), timeout=_REASON_TIMEOUT_S)
        finally:
            is_over = down.done()
            up.cancel()
            down.cancel()
            outcomes = await asyncio.gather(up, down, return_exceptions=True)
            connection.writer.close()
        if not asked or answered or not is_over:
            return None
        reason = outcomes[1]
        return self._dialer.explain(
            connection.server, reason if isinstance(reason, OSError) else ConnectionResetError()
        )

    def _note_trouble(self, error: FederatedError) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("%s", error)

    def _note_success(self, server: ServerAddress) -> None:
        if self._trouble is not None:
            log.info("server %r at %s is back", server.name, server)
        elif self._in_use not in (None, server):
            log.info("using server %r at %s from now on", server.name, server)
        self._trouble = None
        self._in_use = server


async def _answer_unavailable(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: FederatedError
) -> None:
    """Tells an HTTP client that there is no server now: 503, which Prefect's client tries again."""
    body = json.dumps({"detail": str(error)}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {_RETRY_AFTER_S}\r\n"
        "Connection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_REASON_TIMEOUT_S):
            writer.write(head.encode() + body)
            writer.write_eof()
            # Closing with unread bytes would reset the connection and lose the answer.
            while await reader.read(_PART_BYTES):
                pass
