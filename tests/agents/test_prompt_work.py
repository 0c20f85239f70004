"""When a worker that asks for work gets its answer."""

import asyncio
import time
from collections.abc import Callable, Coroutine

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from prefect_federated.agents import prompt_work
from prefect_federated.agents.prompt_work import PromptWork

QUESTION = "/api/work_pools/site-1/get_scheduled_flow_runs"
NEW_RUN = "/api/deployments/4f/create_flow_run"
NEW_STATE = "/api/flow_runs/4f/set_state"
Post = Callable[..., Coroutine[None, None, float]]


async def _answer(request: Request) -> JSONResponse:
    return JSONResponse({"got": (await request.body()).decode()}, int(request.headers["answer"]))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_work, "HOLD_S", 0.5)


def run(
    story: Callable[[Post], Coroutine[None, None, None]],
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Runs a story; its `post(path, body, answer)` returns the seconds that an answer took."""

    async def tell() -> None:
        app = PromptWork(Starlette(routes=[Route("/{path:path}", _answer, methods=["POST"])]),
                         is_stopping)  # fmt: skip
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:

            async def post(path: str, body: str = "", answer: int = 200) -> float:
                began = time.monotonic()
                response = await client.post(path, content=body, headers={"answer": str(answer)})
                assert response.status_code == answer
                assert response.json() == {"got": body}
                return time.monotonic() - began

            await story(post)

    asyncio.run(tell())


def test_a_question_is_held_for_a_moment_where_there_is_nothing_new() -> None:
    async def story(post: Post) -> None:
        assert await post(QUESTION) < 0.3  # the first one is answered at once
        assert await post(QUESTION) >= 0.5

    run(story)


@pytest.mark.parametrize(
    ("path", "body"), [(NEW_RUN, "{}"), (NEW_STATE, '{"state": {"type": "SCHEDULED"}}')]
)
def test_a_held_question_is_answered_when_something_is_scheduled(path: str, body: str) -> None:
    async def story(post: Post) -> None:
        await post(QUESTION)
        held = asyncio.create_task(post(QUESTION))
        await asyncio.sleep(0)  # it is asked before anything is scheduled
        assert not held.done()
        await post(path, body)
        assert await held < 0.45

    run(story)


def test_what_was_scheduled_between_two_questions_is_told_at_once() -> None:
    async def story(post: Post) -> None:
        await post(QUESTION)
        await post(NEW_RUN)
        assert await post(QUESTION) < 0.3

    run(story)


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [(NEW_RUN, "{}", 404), (NEW_STATE, '{"state": {"type": "RUNNING"}}', 201)],
)
def test_nothing_is_told_where_nothing_was_scheduled(path: str, body: str, answer: int) -> None:
    async def story(post: Post) -> None:
        await post(QUESTION)
        await post(path, body, answer)
        assert await post(QUESTION) >= 0.5

    run(story)


def test_nothing_is_held_by_a_server_that_stops() -> None:
    async def story(post: Post) -> None:
        await post(QUESTION)
        assert await post(QUESTION) < 0.3

    run(story, is_stopping=lambda: True)
