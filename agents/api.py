"""Prefect's API and UI behind mutual TLS, with the peer's identity on every request.

Prefect itself knows no roles and no client certificates; both stand in front of it here, as ASGI
middleware around its app. The port is for loopback or for what a gateway reaches.

Run as `python -m prefect_federated.agents.api --kit DIR --listen 127.0.0.1:PORT`. Prefect's
settings come from the environment, as always.
"""

import argparse
import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from prefect_federated.agents.addresses import Address, bind
from prefect_federated.agents.busy import AskAgainSoon
from prefect_federated.agents.origins import OwnPagesOnly, certificate_names
from prefect_federated.agents.peers import CertifiedOnly, PeerProtocol
from prefect_federated.agents.processes import end_with_parent
from prefect_federated.agents.prompt_work import PromptWork
from prefect_federated.agents.registration import SiteRegistration
from prefect_federated.errors import FederatedError
from prefect_federated.kits import Role, StartupKit, load_kit

KEEP_ALIVE_S = 75
SHUTDOWN_S = 3
_NOT_OURS = ("PREFECT_API_URL", "PREFECT_API_KEY")

log = logging.getLogger("prefect_federated.api")


def prepare_environment() -> None:
    """Sets what Prefect's server needs here, unless it is set; call it before Prefect is imported.

    The UI asks the host that it came from; no usage data leaves; the UI's files are unpacked in
    Prefect's home, since the package's own folder may be read-only.
    """
    for name in _NOT_OURS:
        os.environ.pop(name, None)
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", "/api")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_UI_STATIC_DIRECTORY", str(home / "ui"))


def guarded(
    prefect_app: ASGIApp, kit: StartupKit, is_stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """Returns Prefect's app inside the middleware that a request passes, outermost last.

    What decides or records what an identity does belongs between registration and `OwnPagesOnly`:
    there `peers.identity_in(scope)` is certain, and nothing has happened yet.
    """
    app: ASGIApp = SiteRegistration(PromptWork(AskAgainSoon(prefect_app), is_stopping))
    app = OwnPagesOnly(app, certificate_names(kit))
    return CertifiedOnly(app)


def server(app: ASGIApp, kit: StartupKit) -> uvicorn.Server:
    """Returns the uvicorn server of an app, with mutual TLS as the kit says."""
    context = kit.server_context()
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        ssl_context_factory=lambda config, default: context,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    return uvicorn.Server(config)


def run(folder: Path, listen_on: Address) -> None:
    """Serves Prefect's API and UI until SIGTERM or SIGINT.

    Raises:
        KitError: the folder holds no server's kit.
        ConfigurationError: the port is taken.
    """
    kit = load_kit(folder, role=Role.SERVER)
    with bind(listen_on) as listener:
        prepare_environment()
        from prefect.server.api.server import create_app

        from prefect_federated.agents.database import set_up_database
        from prefect_federated.agents.schedules import let_schedules_make_runs

        let_schedules_make_runs()
        with contextlib.suppress(OSError, sqlite3.Error):  # then Prefect does it, at leisure
            set_up_database()

        def is_stopping() -> bool:
            return api.should_exit

        api = server(guarded(create_app(final=True), kit, is_stopping), kit)
        # uvicorn raises the signal that stopped it once more, when all is closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        log.info("starting on %s", Address(*listener.getsockname()[:2]))
        api.run(sockets=[listener])
        if not api.started:
            sys.exit(1)
        log.info("stopped")


def _brief_when_busy(*arguments: Any, **named: Any) -> logging.LogRecord:
    """Makes a log record, of one line where SQLite was busy: Prefect's loops simply try again.

    On SQLite this happens about once a minute, and Prefect logs a hundred lines of traceback.
    """
    record = logging.LogRecord(*arguments, **named)
    if record.exc_info and "database is locked" in str(record.exc_info[1]):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg = f"SQLite was busy, it is tried again ({record.getMessage().strip()})"
        record.args, record.exc_info = (), None
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the API as its command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prefect_federated.agents.api")
    parser.add_argument("--kit", type=Path, required=True, help="folder of the server's kit")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s api: %(message)s", level="WARNING")
    logging.setLogRecordFactory(_brief_when_busy)
    log.setLevel("INFO")
    try:
        run(options.kit, Address.parse(options.listen))
    except FederatedError as error:
        print(f"api: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
