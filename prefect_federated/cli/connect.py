"""`prefect-federated connect`: lets ordinary Prefect tools work against a federation.

It opens the forwarder of a kit, and either runs one command with it or keeps it open. It imports
no Prefect: what it runs may be any program.
"""

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefect_federated.agents.forwarder import Forwarder
from prefect_federated.errors import ConfigurationError
from prefect_federated.kits import load_kit

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def connect(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    kit: Annotated[Path, Parameter(name="--kit")],
    port: Annotated[int, Parameter(name="--port")] = 0,
) -> int:
    """Connect ordinary Prefect tools to a federation.

    Without a command, prints the PREFECT_API_URL to use and stays until it is stopped. With one,
    runs it with that variable set and exits with its exit status:

    prefect-federated connect --kit kits/alice -- prefect deployment run 'fedavg/default'

    Parameters
    ----------
    command
        The command to run and its arguments, after `--`.
    kit
        Folder of your startup kit.
    port
        Port on 127.0.0.1 for Prefect's tools; 0 takes a free one.
    """
    logging.basicConfig(format="prefect-federated: %(message)s", level="WARNING")
    return asyncio.run(_connect(kit, port, command))


async def _connect(folder: Path, port: int, command: Sequence[str]) -> int:
    async with Forwarder(load_kit(folder), port) as forwarder:
        await forwarder.check()
        if command:
            return await _run(command, forwarder.environment())
        logging.getLogger("prefect_federated").setLevel("INFO")
        stopped = asyncio.Event()
        for number in _STOPPING:
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        for name, value in forwarder.environment().items():
            print(f"export {name}={shlex.quote(value)}")
        print(
            "# Paste the lines above into another terminal. Ctrl-C here ends the connection.",
            flush=True,
        )
        await stopped.wait()
    return 0


async def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs a command to its end, passes signals on, and returns its exit status as a shell does."""
    # A key for Prefect Cloud is nobody's business here.
    inherited = {key: value for key, value in os.environ.items() if key != "PREFECT_API_KEY"}
    try:
        process = await asyncio.create_subprocess_exec(*command, env=inherited | environment)
    except OSError as error:
        raise ConfigurationError(
            f"cannot run {command[0]!r}: {error.strerror}. Check its name and PATH; is the virtual "
            "environment active?"
        ) from error
    for number in _STOPPING:
        asyncio.get_running_loop().add_signal_handler(number, _pass_on, process, number)
    status = await process.wait()
    return status if status >= 0 else 128 - status


def _pass_on(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # Ctrl-C reaches the command from the terminal itself; twice would be once too often.
    came_from_terminal = number == signal.SIGINT and any(
        stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    )
    if process.returncode is None and not came_from_terminal:
        process.send_signal(number)
