"""A throwaway federation on this machine: real processes, real mutual TLS, loopback only.

Everything is under one folder: the federation file, CA and kits, states, logs, and `sandbox.json`,
which says what was started. It is the step between the simulator and real machines.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import yaml
from pydantic import BaseModel

from prefect_federated.agents.addresses import free_port
from prefect_federated.agents.connection import connected
from prefect_federated.errors import ConfigurationError, ConnectionFailed, FederatedError, KitError
from prefect_federated.kits import StartupKit, load_kit
from prefect_federated.provisioning import provision
from prefect_federated.tracking import check_installed

USER = "admin"
SERVER = "server"

_START_S = 120.0
_STOP_S = 40.0


class Process(BaseModel):
    """A process that the sandbox started.

    Args:
        name: "server" or the site's name.
        pid: Its process id.
        created: When it was created (seconds since the epoch), so that a reused id is not taken
            for it.
    """

    name: str
    pid: int
    created: float

    def find(self) -> psutil.Process | None:
        """Returns the process if it still runs."""
        try:
            found = psutil.Process(self.pid)
            # Linux tells when it was started, from which it counts, give or take a second.
            is_it = abs(found.create_time() - self.created) < 2 and (
                found.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return None
        return found if is_it else None


class _Record(BaseModel):
    """The file `sandbox.json`."""

    port: int
    sites: list[str]
    processes: list[Process] = []


@dataclass(frozen=True)
class Sandbox:
    """A sandbox in its folder."""

    folder: Path

    @property
    def sites(self) -> list[str]:
        """The sites' names."""
        return self._record().sites

    @property
    def processes(self) -> list[Process]:
        """The processes that were started: the server agent and the site agents."""
        return self._record().processes

    @property
    def ui_url(self) -> str:
        """Address of the Prefect UI; a browser needs the user's certificate for it."""
        return f"https://127.0.0.1:{self._record().port}"

    def kit_folder(self, name: str = USER) -> Path:
        """Returns a participant's startup kit; the user's by default."""
        return self.folder / "kits" / name

    def log(self, name: str) -> Path:
        """Returns the log file of a process."""
        return self.folder / "logs" / f"{name}.log"

    def state(self, name: str) -> Path:
        """Returns the state folder of the server or a site."""
        return self.folder / "state" / name

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files, if they were asked for."""
        return self.folder / "tensorboard"

    @property
    def is_running(self) -> bool:
        """Whether any process that was started still runs."""
        return any(process.find() is not None for process in self.processes)

    @contextmanager
    def connected(self) -> Iterator[dict[str, str]]:
        """Opens the user's forwarder; gives the variables that make Prefect use the sandbox."""
        with connected(self._kit()) as environment:
            yield environment

    def start_process(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts the server's or a site's agent and records it."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect_federated", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        created = psutil.Process(process.pid).create_time()
        record = self._record()
        others = [other for other in record.processes if other.name != name]
        others.append(Process(name=name, pid=process.pid, created=created))
        self._write(record.model_copy(update={"processes": others}))

    def start_server(
        self, environment: Mapping[str, str] | None = None, tensorboard: bool = False
    ) -> None:
        """Starts the server agent, with some variables over those of this process."""
        wanted = ["--tensorboard", str(self.tensorboard)] if tensorboard else []
        self.start_process(
            SERVER,
            [
                "server", "start", "--kit", str(self.kit_folder(SERVER)),
                "--state", str(self.state(SERVER)), *wanted,
            ],
            environment,
        )  # fmt: skip

    def start_site(self, name: str, data: Path | None = None, code: Sequence[Path] = ()) -> None:
        """Starts a site's agent; `data` is the folder that holds the sites' folders of data."""
        arguments = [
            "site", "start", "--kit", str(self.kit_folder(name)), "--state", str(self.state(name)),
        ]  # fmt: skip
        if data is not None:
            arguments += ["--data", str(data / name)]
        for folder in code:
            arguments += ["--code", str(folder)]
        self.start_process(name, arguments)

    def wait_until_ready(
        self, sites: Sequence[str] | None = None, timeout_s: float = _START_S
    ) -> None:
        """Waits until the server takes jobs and the sites' workers poll.

        Raises:
            FederatedError: a process ended, or it took too long; with the last lines of its log.
        """
        deadline = time.monotonic() + timeout_s
        wanted = {*(self.sites if sites is None else sites), "federation"}
        while True:
            for process in self.processes:
                if process.find() is None:
                    raise FederatedError(
                        f"sandbox: {process.name} ended.\n{_last_lines(self.log(process.name))}"
                    )
            missing = wanted - self._ready_pools()
            if not missing:
                return
            if time.monotonic() > deadline:
                name = next(iter(missing - {"federation"}), SERVER)
                raise FederatedError(
                    f"sandbox: {', '.join(sorted(missing))} not ready after {timeout_s:g} s.\n"
                    f"{_last_lines(self.log(name))}"
                )
            time.sleep(0.2)

    def _ready_pools(self) -> set[str]:
        """Returns the pools that take jobs, none while the server cannot be reached."""
        try:
            with self.connected() as environment:
                url = environment["PREFECT_API_URL"]
                with httpx.Client(base_url=f"{url}/", trust_env=False, timeout=10) as api:
                    if not api.get("deployments/name/fedavg/default").is_success:
                        return set()
                    pools = api.post("work_pools/filter", json={}).json()
        except (ConnectionFailed, KitError, httpx.HTTPError, ValueError):
            return set()
        return {pool["name"] for pool in pools if pool["status"] == "READY"}

    def stop(self) -> list[str]:
        """Ends what was started, and nothing else; returns the names of what had to be killed."""
        found = [(process.name, process.find()) for process in self.processes]
        running = [(name, process) for name, process in found if process is not None]
        families = {name: _family(process) for name, process in running}
        running.sort(key=lambda pair: pair[0] == SERVER)  # the server last
        for name, process in running:
            if name != SERVER:
                _signal(process, signal.SIGTERM)
        sites = [process for name, process in running if name != SERVER]
        psutil.wait_procs(sites, timeout=_STOP_S)
        for name, process in running:
            if name == SERVER:
                _signal(process, signal.SIGTERM)
        everything = [process for family in families.values() for process in family]
        _, alive = psutil.wait_procs(everything, timeout=_STOP_S)
        for process in alive:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)
        self._write(self._record().model_copy(update={"processes": []}))
        return [name for name, family in families.items() if set(family) & set(alive)]

    def _kit(self) -> StartupKit:
        return load_kit(self.kit_folder())

    def _record(self) -> _Record:
        return _Record.model_validate_json((self.folder / "sandbox.json").read_text())

    def _write(self, record: _Record) -> None:
        target = self.folder / "sandbox.json"
        part = target.with_suffix(".part")
        part.write_text(record.model_dump_json(indent=2))
        part.replace(target)


def open_sandbox(folder: Path) -> Sandbox:
    """Returns the sandbox in a folder.

    Raises:
        ConfigurationError: there is none.
    """
    if not (folder / "sandbox.json").is_file():
        raise ConfigurationError(
            f"there is no sandbox in {folder}; make one with `prefect-federated sandbox start`."
        )
    return Sandbox(folder.resolve())


def create_sandbox(folder: Path, sites: Sequence[str]) -> Sandbox:
    """Provisions a sandbox, replacing a stopped one in the same folder; starts nothing.

    Raises:
        ConfigurationError: one runs there, or the folder holds something else.
        FederationFileError: a site's name is not one.
    """
    if (folder / "sandbox.json").is_file():
        if open_sandbox(folder).is_running:
            raise ConfigurationError(
                f"a sandbox runs in {folder}; stop it with "
                f"`prefect-federated sandbox stop --folder {folder}`."
            )
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty and is no sandbox; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    description = {
        "name": "sandbox",
        "servers": [{"name": SERVER, "organisation": "sandbox", "address": f"127.0.0.1:{port}"}],
        "sites": [{"name": site, "organisation": site} for site in sites],
        "users": [{"name": USER, "organisation": "sandbox", "role": "project_admin"}],
    }
    file = folder / "federation.yaml"
    file.write_text(yaml.safe_dump(description, sort_keys=False))
    provision(file, folder, passphrase=secrets.token_hex(16).encode())  # nobody needs it again
    (folder / "logs").mkdir()
    sandbox = Sandbox(folder.resolve())
    sandbox._write(_Record(port=port, sites=list(sites)))
    return sandbox


def start_sandbox(
    folder: Path,
    sites: Sequence[str],
    data: Path | None = None,
    code: Sequence[Path] = (),
    say: Callable[[str], None] = lambda text: None,
    tensorboard: bool = False,
) -> Sandbox:
    """Provisions and starts a sandbox, and waits until it takes jobs.

    Args:
        folder: Folder for everything; a stopped sandbox in it is replaced.
        sites: The sites' names.
        data: Folder with one sub-folder of data a site.
        code: Folders to import executors from, beside what is installed.
        say: Told, in a few words, what is going on.
        tensorboard: Whether jobs' metrics are written for TensorBoard.

    Raises:
        FederatedError: it could not be started; nothing is left running.
    """
    if tensorboard:
        check_installed("tensorboard", "--tensorboard")
    sandbox = create_sandbox(folder, sites)
    say(f"provisioned {len(sites)} sites, a server and a user in {folder}")
    try:
        sandbox.start_server(tensorboard=tensorboard)
        for site in sites:
            sandbox.start_site(site, data, code)
        say("started the server and the sites; waiting until they are ready")
        sandbox.wait_until_ready()
    except BaseException:
        sandbox.stop()
        raise
    return sandbox


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _last_lines(file: Path, lines: int = 20) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
