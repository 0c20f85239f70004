"""Fixtures of the integration tests: federations of real processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.postgresql import database
from tests.integration.running import Running, attended, running

SITES = ["site-1", "site-2", "site-3"]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Runs a federation for the tests that leave its agents alone."""
    if os.environ.get("DEVSB"):
        from prefect_federated.agents.sandbox import open_sandbox

        folder = Path(os.environ["DEVSB"])
        with attended(open_sandbox(folder / "sandbox"), folder) as federation:
            yield federation
        return
    with running(tmp_path_factory.mktemp("federation"), SITES) as federation:
        yield federation


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Runs PostgreSQL in a folder of its own; gives the URL of an empty database."""
    with database() as url:
        yield url
