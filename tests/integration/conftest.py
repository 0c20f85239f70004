"""Fixtures of the integration tests: federations of real processes."""

from collections.abc import Iterator

import pytest

from tests.integration.postgresql import database
from tests.integration.running import Running, running

SITES = ["site-1", "site-2", "site-3"]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Runs a federation for the tests that leave its agents alone."""
    with running(tmp_path_factory.mktemp("federation"), SITES) as federation:
        yield federation


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Runs PostgreSQL in a folder of its own; gives the URL of an empty database."""
    with database() as url:
        yield url
