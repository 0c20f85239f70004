"""What all tests share: a Prefect of their own, and a provisioned federation."""

import atexit
import os
import shutil
import signal
import tempfile

# Before Prefect is imported, so that no test reads or writes this user's Prefect or MLflow.
_HOME = tempfile.mkdtemp(prefix="prefect-federated-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))]:
    del os.environ[_name]
# A shell that runs the tests in the background makes them, and what they start, ignore SIGINT, by
# which Prefect's own worker ends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["PREFECT_HOME"] = _HOME
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.agents.network import Federation, free_port  # noqa: E402


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Returns a provisioned federation: server-1, site-1, site-2 and the user alice."""
    return Federation.provision("trial", tmp_path_factory.mktemp("trial"))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Returns another federation, whose CA the first does not know."""
    return Federation.provision("strangers", tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts one Prefect server, in a process of its own, for all tests; returns its API's URL."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_DATABASE_CONNECTION_URL,
        temporary_settings,
    )

    database = tmp_path_factory.mktemp("prefect") / "prefect.db"
    server = SubprocessASGIServer(port=free_port())
    with temporary_settings(
        {PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}"}
    ):
        server.start(timeout=90)
    yield server.api_url
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        APILogWorker.instance().drain()  # else they try to reach the server when it is gone
        EventsWorker.drain_all()
    server.stop()


@pytest.fixture
def prefect_api(prefect_url: str, tmp_path: Path) -> Iterator[str]:
    """Makes flows of this test run against the tests' Prefect server; returns its API's URL."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    settings = {
        PREFECT_API_URL: prefect_url,
        PREFECT_LOCAL_STORAGE_PATH: tmp_path,
        PREFECT_LOGGING_TO_API_ENABLED: False,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(settings):
        yield prefect_url
