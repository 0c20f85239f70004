import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_federated.agents import busy
from prefect_federated.agents.busy import AskAgainSoon


class Busy:
    """An app whose database is busy for the first few requests, as Prefect's answers then."""

    def __init__(self, times: int, headers: dict[str, str] | None = None) -> None:
        self.times = times
        self.headers = headers
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append(await Request(scope, receive).body())
        if len(self.bodies) > self.times:
            await PlainTextResponse("fine")(scope, receive, send)
            return
        await PlainTextResponse("locked", 503, self.headers)(scope, receive, send)
        raise OSError("database is locked")


def answer_of(app: ASGIApp, content: bytes = b"") -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(AskAgainSoon(app), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.post("/", content=content)

    return anyio.run(ask)


def test_a_request_that_meets_a_busy_database_is_done_again_whole() -> None:
    app = Busy(3)
    answer = answer_of(app, b"x" * 100_000)
    assert (answer.status_code, answer.text) == (200, "fine")
    assert app.bodies == [b"x" * 100_000] * 4


def test_a_database_that_stays_busy_is_told_with_when_to_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(busy, "_PATIENCE_S", 0.1)
    app = Busy(1_000)
    answer = answer_of(app)
    assert (answer.status_code, answer.text) == (503, "locked")
    assert answer.headers["retry-after"] == "0.3"
    assert len(app.bodies) > 1


def test_a_large_request_is_not_kept_to_be_done_again() -> None:
    app = Busy(1)
    answer = answer_of(app, b"x" * 3_000_000)
    assert answer.status_code == 503
    assert app.bodies == [b"x" * 3_000_000]


def test_other_answers_and_given_hints_are_left_alone() -> None:
    assert "retry-after" not in answer_of(PlainTextResponse("fine")).headers
    app = Busy(1, {"retry-after": "7"})
    assert answer_of(app).headers["retry-after"] == "7"
    assert len(app.bodies) == 1
