"""Prefect's own server for the length of this process, where no other one is named.

It is the server that Prefect starts by itself when PREFECT_API_URL is not set, with the same
database; started by us it is there in half the time: it starts while this process imports, without
this process having to import the server, and a database that does not exist yet is set up aside. It
ends with this process, however that ends.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_UI_URL,
    get_current_settings,
    temporary_settings,
)

from prefect_federated.agents.database import set_up_database
from prefect_federated.agents.early_server import WANTED, end_unwanted, start_process, take_early
from prefect_federated.errors import ConnectionFailed

log = logging.getLogger("prefect_federated.simulator")

_START_S = 90.0  # a busy machine takes long to import a server
_SET_UP_S = 60.0  # seldom more than 3
_RECORD_S = 3.0  # until the records of the last Prefect tasks are written
_STOP_S = 5.0


class TemporaryServer:
    """A Prefect server in a process of its own, which ends with this process."""

    def __init__(self) -> None:
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        server = take_early() or start_process(settings)
        server.serve()
        self.api_url, self._process = server.api_url, server.process
        self._started = datetime.now(UTC)
        atexit.register(self.stop)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Waits until the server answers.

        Raises:
            ConnectionFailed: it has ended, or does not answer.
        """
        try:
            with httpx.Client(trust_env=False, timeout=_START_S) as client:
                client.get(f"{self.api_url}/health").raise_for_status()
        except httpx.HTTPError as error:
            status = self._process.poll()
            ended = "" if status is None else f"; its process ended with status {status}"
            raise ConnectionFailed(
                f"the temporary Prefect server at {self.api_url} does not answer ({error}){ended}. "
                "Look at what it wrote above, or start `prefect server start` and set "
                "PREFECT_API_URL."
            ) from error

    def stop(self) -> None:
        """Stops the server when it has recorded what it was told; within seconds in any case."""
        atexit.unregister(self.stop)
        if self.is_running:
            self._wait_for_records()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_for_records(self) -> None:
        unfinished = {
            "task_runs": {
                "start_time": {"after_": self._started.isoformat()},
                "state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}},
            }
        }
        deadline = time.monotonic() + _RECORD_S
        with (
            contextlib.suppress(httpx.HTTPError, ValueError),
            httpx.Client(trust_env=False, timeout=_RECORD_S) as client,
        ):
            while time.monotonic() < deadline:
                answer = client.post(f"{self.api_url}/task_runs/count", json=unfinished)
                if answer.raise_for_status().json() == 0:
                    return
                time.sleep(0.05)


_server: TemporaryServer | None = None
_lock = threading.Lock()


def start_if_needed() -> TemporaryServer | None:
    """Starts the server, unless Prefect's settings name one or forbid a temporary one.

    Returns at once; a server that this process has started already is returned again.
    """
    global _server
    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        end_unwanted()
        return None
    with _lock:
        if _server is None or not _server.is_running:
            _server = TemporaryServer()
        return _server


@contextlib.contextmanager
def reached(server: TemporaryServer | None) -> Iterator[None]:
    """Makes flows inside the block report to this server; to the settings' own if None.

    Raises:
        ConnectionFailed: it does not answer.
    """
    if server is None:
        yield
        return
    server.wait_until_ready()
    with temporary_settings({PREFECT_API_URL: server.api_url, PREFECT_UI_URL: ""}):
        try:
            yield
        finally:
            sender = threading.Thread(target=_hand_over)  # where no event loop runs
            sender.start()
            sender.join()


def _hand_over() -> None:
    """Sends what still waits to be sent, while the settings say where to."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all()
    EventsWorker.drain_all()


# What follows runs in the server's process


def main(descriptor: int) -> None:
    """Serves Prefect's API on a listening socket, once it is wanted, until standard input ends."""
    import uvicorn
    from prefect.server.database import provide_database_interface

    provide_database_interface()  # what takes long and needs no database
    if sys.stdin.buffer.readline() != WANTED:
        return
    setting_up = _set_up_database_aside()
    from prefect.server.api.server import create_app

    app = create_app()
    _wait_for(setting_up)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    )

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=end_with_parent, daemon=True).start()
    with socket.socket(fileno=descriptor) as listener:
        asyncio.run(server.serve([listener]))
    os._exit(0)  # all is written; Python's own end takes a second more


def _set_up_database_aside() -> int:
    """Makes the database in a forked process, while this one imports the rest of the server."""
    if (child := os.fork()) == 0:
        with contextlib.suppress(Exception):  # the server then sets it up itself, at leisure
            set_up_database()
        os._exit(0)
    return child


def _wait_for(child: int) -> None:
    """Waits for the process that makes the database; not for ever."""
    deadline = time.monotonic() + _SET_UP_S
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]))
