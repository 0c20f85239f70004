"""A busy database: a request that met a lock is done again here, before its client hears of it.

On SQLite, a transaction that has read and then wants to write fails at once if another has written
meanwhile. While a job makes several rounds a second, one request in ten does. Nothing of it has
happened then, and it goes well a moment later; Prefect's client would wait 2, 4, 8, ... seconds
before it asks again: for a heartbeat that is an age.
"""

import asyncio
import random
import time
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER_S = 0.3
_PATIENCE_S = 3.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.3
_REPEATED_BYTES = 1 << 20
_UNAVAILABLE = 503


class AskAgainSoon:
    """ASGI middleware that repeats requests answered with status 503, each for a few seconds.

    An answer that stays 503 gets a `Retry-After`, if it has none. Large requests, and answers that
    tell when to come again, are passed on at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, websocket or lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        heard = await _hear(receive)
        pause_s, give_up_at = _FIRST_PAUSE_S, time.monotonic() + _PATIENCE_S
        if not _is_whole(heard):
            give_up_at = 0.0
        while True:
            answer = _Answer(send)
            try:
                await self._app(dict(scope), _repeated(heard, receive), answer.send)
            except Exception:  # Starlette answers, and then raises what it has answered
                if not answer.held or time.monotonic() > give_up_at:
                    await answer.let_go()
                    raise
            if not answer.held or time.monotonic() > give_up_at:
                await answer.let_go()
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Answer:
    """Passes an answer on, or holds it back, if it says that the database is busy."""

    def __init__(self, send: Send) -> None:
        self.held: list[Message] = []
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == _UNAVAILABLE:
            headers = MutableHeaders(raw=message["headers"])
            if "retry-after" not in headers:
                headers["Retry-After"] = str(RETRY_AFTER_S)
                self.held.append(message)
                return
        if self.held:
            self.held.append(message)
        else:
            await self._send(message)

    async def let_go(self) -> None:
        for message in self.held:
            await self._send(message)


async def _hear(receive: Receive) -> list[Message]:
    """Returns a request's body in the messages in which it came, as far as it may be repeated."""
    heard = [await receive()]
    size = len(heard[0].get("body", b""))
    while heard[-1].get("more_body") and size <= _REPEATED_BYTES:
        heard.append(await receive())
        size += len(heard[-1].get("body", b""))
    return heard


def _is_whole(heard: Sequence[Message]) -> bool:
    return heard[-1]["type"] == "http.request" and not heard[-1].get("more_body")


def _repeated(heard: Sequence[Message], receive: Receive) -> Receive:
    left = list(heard)

    async def receive_again() -> Message:
        return left.pop(0) if left else await receive()

    return receive_again
