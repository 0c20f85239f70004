"""Starts the process of a temporary Prefect server; before Prefect is imported here, if need be.

A server imports for seconds, and so does the process that will use it. Both do it at the same time,
if the server's process is started first: it then waits to be told whether it is wanted, and touches
no database before. This module imports nothing that takes time.
"""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

WANTED = b"serve\n"
"""What the server's process is told on its standard input, whose end ends it."""
_AS_PREFECT_STARTS_IT = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
_QUICKER = {  # what a user has set goes first
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # a block that is saved registers its type
    # task runs are recorded many at a time, instead of each in a transaction
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@dataclass(frozen=True)
class ServerProcess:
    """A server's process, which serves once it is told so.

    Args:
        api_url: Where the API will be; what connects before that waits.
        process: Its standard input is a pipe.
    """

    api_url: str
    process: "subprocess.Popen[bytes]"

    def serve(self) -> None:
        """Tells the process that it is wanted."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended: who connects is told so
                self.process.stdin.write(WANTED)
                self.process.stdin.flush()


_early: ServerProcess | None = None


def start_early() -> None:
    """Starts a process for the server that a simulation will probably need.

    Where the environment names a server there is none: nobody will need it.
    """
    global _early
    if _early is None and "PREFECT_API_URL" not in os.environ:
        _early = start_process({})
        atexit.register(end_unwanted)


def take_early() -> ServerProcess | None:
    """Returns the process that was started early, once; None if there is none."""
    global _early
    early, _early = _early, None
    return early


def start_process(settings: Mapping[str, str]) -> ServerProcess:
    """Starts a server's process.

    Args:
        settings: Prefect's, as environment variables.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:  # handed over to the process
        descriptor = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect_federated.agents.temporary_server", str(descriptor)],
            env={**_QUICKER, **os.environ, **settings, **_AS_PREFECT_STARTS_IT},
            stdin=subprocess.PIPE,  # its end tells the server that this process has ended
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C is for the flow, which then still has to report
        )
        return ServerProcess(f"http://127.0.0.1:{listener.getsockname()[1]}/api", process)


def end_unwanted() -> None:
    """Ends the process that was started early, if nobody has taken it."""
    unwanted = take_early()
    if unwanted is not None:
        unwanted.process.kill()
        unwanted.process.wait()
