"""Fixtures of the agents' tests."""

import pytest

from tests.agents.network import Federation


@pytest.fixture(scope="session")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Returns the federation that the tests are about."""
    return Federation.provision("heart", tmp_path_factory.mktemp("heart"))


@pytest.fixture(scope="session")
def lung(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Returns another federation, a stranger to the first."""
    return Federation.provision("lung", tmp_path_factory.mktemp("lung"))
