"""Reading what Prefect's API gives in pages: at most 200 of anything at a time."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

PAGE = 200

Thing = TypeVar("Thing")


class _Identified(Protocol):
    @property
    def id(self) -> object: ...


Found = TypeVar("Found", bound=_Identified)


def read_all(read: Callable[..., list[Found]], **query: object) -> list[Found]:
    """Returns all that a query of Prefect's client finds, each once.

    Args:
        read: The client's method, such as `client.read_deployments`.
        query: Its filters.
    """
    found: dict[object, Found] = {}
    offset = 0
    while page := read(**query, limit=PAGE, offset=offset):
        found.update({one.id: one for one in page})
        offset += len(page)
        if len(page) < PAGE:
            break
    return list(found.values())


async def read_all_async(
    read: Callable[..., Awaitable[list[Found]]], **query: object
) -> list[Found]:
    """Returns all that a query finds, as `read_all` does, with Prefect's asynchronous client."""
    found: dict[object, Found] = {}
    offset = 0
    while page := await read(**query, limit=PAGE, offset=offset):
        found.update({one.id: one for one in page})
        offset += len(page)
        if len(page) < PAGE:
            break
    return list(found.values())


def in_pages(ids: Sequence[Thing]) -> Iterator[Sequence[Thing]]:
    """Yields ids, so many at a time that what a query finds of them is one page."""
    for start in range(0, len(ids), PAGE):
        yield ids[start : start + PAGE]
