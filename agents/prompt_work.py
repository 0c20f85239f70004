"""Workers hear of new work at once: a worker's question for work is answered when there is some.

Prefect's workers poll. Asked often, they cost the server; asked seldom, a job starts late, at the
server and again at each site. Here the question is held for a moment, unless something has been
scheduled since the worker asked last. What Prefect schedules by itself (a cron schedule, an
automation) or through another server is found when the moment is over.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOLD_S = 2.0
_QUESTION = re.compile(r"/api/work_pools/([^/]+)/get_scheduled_flow_runs")
_NEW_RUN = re.compile(r"/api/(deployments/[^/]+/create_flow_run|flow_runs/[^/]+/resume)")
_NEW_STATE = re.compile(r"/api/flow_runs/[^/]+/set_state")
_LOOK_S = 0.1


class PromptWork:
    """ASGI middleware that holds workers' questions until something is scheduled.

    Args:
        app: Prefect's server app.
        is_stopping: Whether the server is about to stop; then nothing is held.
    """

    def __init__(self, app: ASGIApp, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._is_stopping = is_stopping
        self._scheduled = asyncio.Event()
        self._number = 0  # of the newest thing that was scheduled
        self._known: dict[str, int] = {}  # by work pool: up to where it has asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, websocket or lifespan."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif question := _QUESTION.fullmatch(scope["path"]):
            await self._hold(question[1])
            await self._app(scope, receive, send)
        elif _NEW_RUN.fullmatch(scope["path"]):
            await self._app(scope, receive, self._telling(send))
        elif _NEW_STATE.fullmatch(scope["path"]):
            await self._take_state(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _hold(self, pool: str) -> None:
        end = asyncio.get_running_loop().time() + HOLD_S
        while self._known.get(pool) == self._number and not self._is_stopping():
            if asyncio.get_running_loop().time() >= end:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._scheduled.wait(), _LOOK_S)
        self._known[pool] = self._number

    async def _take_state(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()

        async def read() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start" and b'"SCHEDULED"' in body:
                self._tell(message["status"])

        await self._app(scope, read, tell)

    def _telling(self, send: Send) -> Send:
        async def tell(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self._tell(message["status"])

        return tell

    def _tell(self, status: int) -> None:
        if status < 300:
            self._number += 1
            self._scheduled.set()
            self._scheduled = asyncio.Event()
