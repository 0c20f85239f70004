"""Who is at the other end of a connection to the API: the identity in its certificate.

uvicorn hands a protocol's `app_state` on to each request's `scope["state"]`, and to the websocket
protocol that takes a connection over. The identity is put there when the connection is made, so it
belongs to that connection alone; no table by address could ever be out of date. It decides nothing
but that there is an identity: what it may do is for a middleware further in.
"""

import asyncio
import logging

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefect_federated.errors import KitError
from prefect_federated.kits import Identity, identity_of

IDENTITY_KEY = "identity"
_REFUSAL_KEY = "identity_refusal"

log = logging.getLogger("prefect_federated.api")


class PeerProtocol(H11Protocol):
    """HTTP over mutual TLS whose requests, websockets included, carry the peer's identity."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Reads the peer's certificate, which the TLS handshake has checked."""
        tls = transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert(binary_form=True)
        if certificate is None:
            log.error("closed a connection without a client certificate: is TLS misconfigured?")
            transport.abort()
            return
        try:
            found: dict[str, object] = {IDENTITY_KEY: identity_of(certificate)}
        except KitError as error:
            found = {_REFUSAL_KEY: str(error)}
        self.app_state = {**self.app_state, **found}
        super().connection_made(transport)


class CertifiedOnly:
    """ASGI middleware that answers 403 to a peer whose certificate names no participant.

    Everything inside may rely on `identity_in`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, websocket or lifespan."""
        if scope["type"] == "lifespan" or IDENTITY_KEY in scope["state"]:
            await self._app(scope, receive, send)
            return
        reason = scope["state"].get(_REFUSAL_KEY, "the connection has no identity")
        log.warning("refused %s: %s", scope["path"], reason)
        await refuse(scope, receive, send, 403, reason)


def identity_in(scope: Scope) -> Identity:
    """Returns whose request or websocket this is; inside `CertifiedOnly` it is always there."""
    identity = scope["state"][IDENTITY_KEY]
    assert isinstance(identity, Identity)
    return identity


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
    """Answers a request, or a websocket's handshake, with an HTTP status and a reason."""
    await JSONResponse({"detail": detail}, status)(scope, receive, send)
