"""Child processes of the agents: they end with their parent, and stop when they are told."""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect_federated.errors import ConfigurationError, FederatedError, KitError

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_ENDS_TOLERATED = 5
_ENDS_IN_S = 60.0

PARENT = "PREFECT_FEDERATED_PARENT"
"""Environment variable: the process that a child of the agents was started by."""

LEAN_MEMORY = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 20),
}
"""Environment in which glibc gives a tensor's memory back to the system as soon as it is freed.

Its own rule would keep it after the first round: measured, 300 MB more for a model of 100 MB.
"""

log = logging.getLogger("prefect_federated.processes")


def end_with_parent(parent: int | None = None) -> None:
    """Makes this process end at once when its parent dies, however the parent dies (Linux).

    Args:
        parent: The parent's process id; what PREFECT_FEDERATED_PARENT says if None. A parent that
            has died already, while this process imported, is noticed by it.

    An agent that is stopped ends its children first, with patience. One that is killed takes its
    forwarder with it: a child that would still report something had nobody to report to, and could
    wait for minutes.
    """
    if sys.platform != "linux":
        return
    parent = parent or int(os.environ.pop(PARENT, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def call_this_process(name: str) -> None:
    """Gives this process a name of at most 15 letters, as `ps` and `top` show it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def agent_environment(state: Path) -> dict[str, str]:
    """Returns the environment of an agent's processes; what an operator has set stays.

    Temporary files are the agent's own: Prefect's runners share a folder in the system's, which
    belongs to the first user of the machine. Whatever points Prefect elsewhere is left out.
    """
    temporary = state / "tmp"
    temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
    elsewhere = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE")
    inherited = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return {
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "0.2",  # the server holds the question: `prompt_work`
        "TMPDIR": str(temporary),
        **LEAN_MEMORY,
        **inherited,
    }


class Child:
    """A process of an agent that is started again when it ends by itself.

    Args:
        name: What it is called in the log.
        arguments: Its command line.
        environment: Its environment variables.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._ends: deque[float] = deque(maxlen=_ENDS_TOLERATED)

    async def run(self) -> None:
        """Keeps the process running; returns only by an error or by being cancelled.

        Raises:
            FederatedError: it ended again and again, or (exit status of a wrong configuration) at
                once for a reason that a restart cannot mend; it has said why itself.
        """
        try:
            while True:
                status = await (await self._start()).wait()
                self._ends.append(time.monotonic())
                if status in (ConfigurationError.exit_code, KitError.exit_code):
                    raise FederatedError(f"{self.name} cannot start; its own line above says why.")
                if (
                    len(self._ends) == _ENDS_TOLERATED
                    and self._ends[-1] - self._ends[0] < _ENDS_IN_S
                ):
                    raise FederatedError(
                        f"{self.name} ended {_ENDS_TOLERATED} times within {_ENDS_IN_S:g} s, last "
                        f"with exit status {status}; its log says why."
                    )
                log.warning("%s ended with exit status %s; starting it again", self.name, status)
                await asyncio.sleep(0.5)
        finally:
            await asyncio.shield(self.stop())

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments,
            env={**self._environment, PARENT: str(os.getpid())},
            stdin=asyncio.subprocess.DEVNULL,
        )
        return self._process

    async def stop(self, patience_s: float = 15.0) -> None:
        """Asks the process to end, and ends it if it does not within `patience_s` seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), patience_s)
        except TimeoutError:
            log.warning("%s did not end within %g s; killing it", self.name, patience_s)
            process.kill()
            await process.wait()


async def until_signal() -> None:
    """Waits for SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def log_to_stderr() -> None:
    """Sends this project's log lines, and warnings of others, to standard error."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s | %(levelname)-7s | %(name)s | %(message)s",
    )
    logging.getLogger("prefect_federated").setLevel(logging.INFO)
