import anyio
import httpx
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from prefect_federated.agents.busy import AskAgainSoon


def answer_of(app: ASGIApp) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(AskAgainSoon(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get("/")

    return anyio.run(ask)


def test_an_answer_that_the_database_is_busy_tells_to_ask_again_soon() -> None:
    assert answer_of(PlainTextResponse("locked", 503)).headers["retry-after"] == "0.3"


def test_other_answers_and_given_hints_are_left_alone() -> None:
    assert "retry-after" not in answer_of(PlainTextResponse("fine")).headers
    hinted = PlainTextResponse("later", 503, {"retry-after": "7"})
    assert answer_of(hinted).headers["retry-after"] == "7"
