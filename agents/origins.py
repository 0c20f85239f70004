"""Keeps other web sites' pages from using the API through a person's browser.

A browser that can reach the API, by its client certificate or through a forwarder on loopback,
would send requests for any page that is open in it. This lets in only what asks for the server by
one of its own names, and pages only of the server itself. Other programs send no origin.
"""

import logging
from collections.abc import Collection
from urllib.parse import urlsplit

from cryptography import x509
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_federated.agents.peers import refuse
from prefect_federated.kits import StartupKit

LOOPBACK_NAMES = frozenset({"127.0.0.1", "::1", "localhost"})

log = logging.getLogger("prefect_federated.api")


class OwnPagesOnly:
    """ASGI middleware that answers 403 to requests that another web site caused.

    Args:
        app: What is inside.
        names: Names and IP addresses of this server, besides loopback.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = LOOPBACK_NAMES | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, websocket or lifespan."""
        if scope["type"] != "lifespan" and (reason := self._objection(scope)):
            log.warning("refused %s: %s", scope["path"], reason)
            await refuse(scope, receive, send, 403, reason)
            return
        await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> str | None:
        headers = {key: value.decode("latin-1").lower() for key, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if _host_name(host) not in self._names:
            return (
                f"the request is for the host {host!r}, which is none of this server's names "
                f"({', '.join(sorted(self._names))})"
            )
        if origin is not None and origin.partition("://")[2] != host:
            return f"the request comes from a page of {origin!r}, not of this server ({host!r})"
        return None


def certificate_names(kit: StartupKit) -> frozenset[str]:
    """Returns the DNS names and IP addresses that a kit's certificate is valid for."""
    certificate = x509.load_pem_x509_certificate(kit.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset(
        [
            *names.get_values_for_type(x509.DNSName),
            *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
        ]
    )


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
