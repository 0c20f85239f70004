"""Reading in pages, against an API that gives as much as a page and no more."""

import asyncio
from dataclasses import dataclass

import pytest

from prefect_federated.tasks.paging import PAGE, in_pages, read_all, read_all_async


@dataclass(frozen=True)
class Run:
    id: int


def page_of(count: int, limit: int, offset: int) -> list[Run]:
    return [Run(number) for number in range(count)][offset : offset + min(limit, 200)]


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 7])
def test_all_are_read_however_many_there_are(count: int) -> None:
    async def page(count: int, limit: int, offset: int) -> list[Run]:
        return page_of(count, limit, offset)

    expected = [Run(number) for number in range(count)]
    assert read_all(page_of, count=count) == expected
    assert asyncio.run(read_all_async(page, count=count)) == expected
    pages = list(in_pages(expected))
    assert [run for some in pages for run in some] == expected
    assert all(len(some) <= PAGE for some in pages)


def test_what_moves_to_a_later_page_meanwhile_is_read_once() -> None:
    pages = iter([[Run(number) for number in range(PAGE)], [Run(PAGE - 1), Run(PAGE)]])
    found = read_all(lambda limit, offset: next(pages))
    assert found == [Run(number) for number in range(PAGE + 1)]
