"""A federation of real processes on this machine whose parts are made to fail.

Each site reaches the server through a line of its own (`tcp_proxy`), which can be disturbed. What a
service manager would start again in production, the agents, is started again here. Only processes
that were started here are ended, by their process id.
"""

import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.tcp_proxy import TcpProxy
from prefect_federated.agents.addresses import Address
from prefect_federated.agents.sandbox import SERVER, Sandbox, create_sandbox
from prefect_federated.kits import DESCRIPTION_FILE, KitDescription, ServerAddress, load_kit

CHECKOUT = Path(__file__).resolve().parent.parent
CONTROLLER, SITE = "fed-controller", "fed-site"
"""Names of the processes of a job, at the server and at a site."""

_COMES_IN_S = 10.0  # a process that is just being started again
_DIES_IN_S = 10.0


@dataclass(frozen=True)
class Besieged:
    """A running federation, with a line to each of its sites."""

    sandbox: Sandbox
    lines: dict[str, TcpProxy]
    _starting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sites(self) -> list[str]:
        """The sites' names."""
        return list(self.lines)

    @property
    def server(self) -> Address:
        """Where the gateway listens."""
        own = load_kit(self.sandbox.kit_folder(SERVER)).own_address
        return Address(own.host, own.port)

    def start(self, name: str) -> None:
        """Starts the server's or a site's agent, as a service manager would."""
        with self._starting:
            if name == SERVER:
                self.sandbox.start_server()
            else:
                self.sandbox.start_site(name, code=[CHECKOUT])

    def start_what_ended(self) -> list[str]:
        """Starts the agents again that have ended by themselves; returns their names."""
        ended = [process.name for process in self.sandbox.processes if process.find() is None]
        for name in ended:
            self.start(name)
        return ended

    def family(self, name: str) -> list[psutil.Process]:
        """Returns an agent's process and all below it; none if it does not run."""
        for process in self.sandbox.processes:
            if process.name == name and (agent := process.find()) is not None:
                try:
                    return [agent, *agent.children(recursive=True)]
                except psutil.Error:
                    return []
        return []

    def find(self, agent: str, what: str | None = None) -> psutil.Process | None:
        """Returns an agent's process with this name, or that runs this module; or the agent."""
        for process in self.family(agent):
            try:
                is_alive = process.status() != psutil.STATUS_ZOMBIE
                if is_alive and (what in (None, process.name()) or what in process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None

    def kill(self, agent: str, what: str | None = None) -> float | None:
        """Ends a process with SIGKILL; returns when (seconds since the epoch), None if none is.

        Args:
            agent: The agent's name: "server" or a site.
            what: The name or the module of a process of this agent; the agent itself if None.
        """
        deadline = time.monotonic() + _COMES_IN_S
        while (process := self.find(agent, what)) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)
        at = time.time()
        try:
            process.kill()  # psutil makes sure that the id was not given to another process
        except psutil.NoSuchProcess:
            return None
        psutil.wait_procs([process], timeout=_DIES_IN_S)
        return at

    def set_disk_full(self, agent: str, is_full: bool) -> None:
        """Makes each write to a file fail for all processes of an agent, or lets them write again.

        The soft limit on the size of files needs no privileges, and is inherited by processes that
        start meanwhile. A write fails with EFBIG where a full disk gives ENOSPC.
        """
        for process in self.family(agent):
            try:
                hard = process.rlimit(resource.RLIMIT_FSIZE)[1]
                process.rlimit(resource.RLIMIT_FSIZE, (0 if is_full else hard, hard))
            except psutil.Error:
                continue

    def left_running(self) -> list[str]:
        """Returns what runs of this federation, whoever started it: name, process id, command."""
        found: list[str] = []
        for process in psutil.process_iter(["pid", "name", "status", "cmdline"]):
            if process.pid == os.getpid() or process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            if str(self.sandbox.folder) in _words_of(process):
                command = " ".join(process.info["cmdline"] or ())
                found.append(f"{process.info['name']} ({process.pid}): {command}")
        return found


@contextmanager
def besieged(folder: Path, sites: Sequence[str]) -> Iterator[Besieged]:
    """Starts a federation whose sites reach the server through lines, and ends it."""
    sandbox = create_sandbox(folder, sites)
    own = load_kit(sandbox.kit_folder(SERVER)).own_address
    with ExitStack() as lines:
        federation = Besieged(
            sandbox,
            {site: lines.enter_context(TcpProxy(Address(own.host, own.port))) for site in sites},
        )
        for site, line in federation.lines.items():
            _lead_through(sandbox.kit_folder(site), line.address)
        try:
            for name in [SERVER, *sites]:
                federation.start(name)
            sandbox.wait_until_ready()
            yield federation
        finally:
            sandbox.stop()


def _lead_through(kit: Path, line: Address) -> None:
    """Has a site dial its line; whom it meets there, the certificates tell it as before."""
    file = kit / DESCRIPTION_FILE
    description = KitDescription.model_validate_json(file.read_bytes())
    (server,) = description.servers
    through = ServerAddress(server.name, line.host, line.port)
    file.write_text(description.model_copy(update={"servers": (through,)}).model_dump_json())


def _words_of(process: psutil.Process) -> str:
    """Returns a process's command line and environment; "" for those of other users."""
    try:
        return "\0".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return ""
