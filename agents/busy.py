"""A busy database: clients are told to ask again soon.

On SQLite, a few requests in a hundred meet a lock and are answered 503. Without a hint Prefect's
client waits 2, 4, 8, ... seconds before it asks again: for a heartbeat that is an age.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER_S = 0.3
_UNAVAILABLE = 503


class AskAgainSoon:
    """ASGI middleware that adds `Retry-After` to answers with status 503 that have none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, websocket or lifespan."""

        async def send_with_hint(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _UNAVAILABLE:
                MutableHeaders(raw=message["headers"]).setdefault("Retry-After", str(RETRY_AFTER_S))
            await send(message)

        await self._app(scope, receive, send_with_hint)
