"""Opens mutual TLS connections to a kit's servers, and says in words why one does not come about.

It tries the servers in the kit's order, the last good one first. It carries nothing: that is the
forwarder's.
"""

import asyncio
import socket
import ssl
from dataclasses import dataclass

from prefect_federated.agents.relay import keep_alive
from prefect_federated.errors import ConnectionFailed, FederatedError, KitError
from prefect_federated.kits import ServerAddress, StartupKit
from prefect_federated.transport.tls_failures import REFUSALS

DIAL_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
LAST_WORD_TIMEOUT_S = 2.0
"""A server that has just started, or is busy, may take a while for its first answer."""

_EXPIRED, _NOT_YET_VALID, _OTHER_NAME = 10, 9, 62  # X509_V_ERR_* of OpenSSL


@dataclass(frozen=True)
class ServerConnection:
    """An open TLS connection to one of the kit's servers."""

    server: ServerAddress
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Dialer:
    """Connects to the API of a kit's servers.

    Args:
        kit: A checked startup kit.

    Raises:
        KitError: the kit's files cannot be read any more.
    """

    def __init__(self, kit: StartupKit) -> None:
        self._kit = kit
        self._context = kit.client_context()
        self._servers = list(kit.servers)

    async def connect(self) -> ServerConnection:
        """Returns a connection to the first server that lets us have one.

        The server may still refuse our certificate: TLS 1.3 tells that at the first read, and
        `explain` puts it in words.

        Raises:
            ConnectionFailed: no server can be reached; the message has a reason for each.
            KitError: all of them refuse our certificate.
        """
        failures: list[FederatedError] = []
        for server in list(self._servers):
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(
                        server.host,
                        server.port,
                        ssl=self._context,
                        server_hostname=self._kit.api_name,
                    )
            except OSError as error:  # ssl.SSLError, TimeoutError and gaierror among them
                failures.append(self.explain(server, error))
                continue
            keep_alive(writer.get_extra_info("socket"))
            self._servers.remove(server)
            self._servers.insert(0, server)
            return ServerConnection(server, reader, writer)
        if len(failures) == 1:
            raise failures[0]
        kind = KitError if all(isinstance(one, KitError) for one in failures) else ConnectionFailed
        raise kind(" ".join(str(failure) for failure in failures))

    async def check(self) -> ServerAddress:
        """Asks for the API's health over a connection of its own; returns the server that is well.

        Raises:
            ConnectionFailed: no server can be reached, or its API is not well.
            KitError: the server refuses our certificate.
        """
        connection = await self.connect()
        request = (
            f"GET /api/health HTTP/1.1\r\nHost: {self._kit.api_name}\r\nConnection: close\r\n\r\n"
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                connection.writer.write(request.encode())
                answer = await connection.reader.read()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self.explain(connection.server, await self._last_word(error)) from error
        except OSError as error:
            raise self.explain(connection.server, error) from error
        finally:
            connection.writer.transport.abort()
        status, _, rest = answer.partition(b"\r\n")
        if not answer:
            raise self.explain(connection.server, ConnectionResetError())
        if status.split()[1:2] != [b"200"]:
            body = rest.partition(b"\r\n\r\n")[2][:500].decode(errors="replace").strip()
            raise ConnectionFailed(
                f"{_name(connection.server)} answers {status[:100].decode(errors='replace')!r} to "
                f"GET /api/health: {body or 'no reason given'}. Its log says more."
            )
        return connection.server

    async def _last_word(self, broken: OSError) -> OSError:
        """Returns why a server closed a connection in the middle of our request.

        Its TLS alert is lost where our request met the closed connection first, so another
        connection only listens.
        """
        connection = await self.connect()
        try:
            async with asyncio.timeout(LAST_WORD_TIMEOUT_S):
                await connection.reader.read(1)
        except TimeoutError:
            return broken
        except OSError as error:
            return error
        finally:
            connection.writer.transport.abort()
        return broken

    def explain(self, server: ServerAddress, error: OSError) -> FederatedError:
        """Returns what an error on a connection to `server` means and what to do about it."""
        where, kit = _name(server), self._kit
        match error:
            case ssl.SSLCertVerificationError():
                return ConnectionFailed(f"{where} shows {self._flaw(error)}")
            case ssl.SSLError() if error.reason in REFUSALS:
                return KitError(
                    f"{where} refuses the certificate in {kit.folder}: "
                    f"{REFUSALS[error.reason]} (TLS alert {error.reason}). Use "
                    f"the kit that the administrator of federation {kit.federation!r} made for "
                    f"{kit.identity.name!r}, or ask for a new one."
                )
            case ssl.SSLEOFError() | ConnectionResetError() | BrokenPipeError():
                return ConnectionFailed(
                    f"{where} closes connections before it answers: its API is not up (yet). Wait "
                    "while it starts; otherwise see the server's log."
                )
            case ssl.SSLError():
                return ConnectionFailed(
                    f"{where} does not speak TLS 1.3 as a server of ours does ({error.reason}). "
                    f"Check the address in {kit.folder}/kit.json; is a proxy in between?"
                )
            case ConnectionRefusedError():
                return ConnectionFailed(
                    f"{where} refuses connections: nothing listens there. Is `prefect-federated "
                    f"server start` running, and is the address in {kit.folder}/kit.json right?"
                )
            case TimeoutError():
                return ConnectionFailed(
                    f"{where} gives no answer in time. Is the address in {kit.folder}/kit.json "
                    f"right, and does the firewall let connections out to port {server.port}?"
                )
            case socket.gaierror():
                return ConnectionFailed(
                    f"{where}: the host name {server.host!r} is not known here ({error.strerror}). "
                    f"Check DNS, and the address in {kit.folder}/kit.json."
                )
            case _:
                return ConnectionFailed(f"{where} cannot be reached: {error}.")

    def _flaw(self, error: ssl.SSLCertVerificationError) -> str:
        federation = self._kit.federation
        if error.verify_code == _EXPIRED:
            return "a certificate that has expired. The server needs a new kit."
        if error.verify_code == _NOT_YET_VALID:
            return "a certificate that is not valid yet. Compare the clocks of both machines."
        if error.verify_code == _OTHER_NAME:
            return (
                f"a certificate without the name {self._kit.api_name!r}: that of another "
                f"participant or federation. Check the address in {self._kit.folder}/kit.json."
            )
        return (
            f"a certificate that is not signed by the CA of federation {federation!r} "
            f"({error.verify_message}): a server of another federation. Check the address in "
            f"{self._kit.folder}/kit.json."
        )


def _name(server: ServerAddress) -> str:
    return f"server {server.name!r} at {server}"
