"""Warm starts: a process that has imported Prefect already and forks one process for each run.

`import prefect` costs more than a second of processor time, at the server and again at every site.
A worker starts this server beside itself, and instead of a run's module it starts `fork_stub`: a
few milliseconds of Python that asks for a fork, hands over its files and environment, and then
stands in for it: signals to the stub reach the run's process, and the stub ends as that ends.

Single-threaded, so that forking is safe. Run as
`python -m prefect_federated.agents.fork_server SOCKET`.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from prefect_federated.agents.processes import PARENT, call_this_process, end_with_parent

MODULES = {
    "prefect.engine": "fed-controller",
    "prefect_federated.agents.site_process": "fed-site",
}
"""What a stub may ask for, and the process's name as `ps` and `top` show it."""

_IMPORTED = (
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.client.orchestration",
    "prefect.deployments",
    "prefect.events.clients",
    "prefect.logging.handlers",
    "prefect.artifacts",
    "prefect._internal.metrics",
    "prefect_federated.agents.site_flow",
    "prefect_federated.flows.fedavg",
    "prefect_federated.flows.statistics",
)
_REQUEST_BYTES = 4 << 20
_STREAMS = 3  # standard input, output and error


@dataclass
class _Run:
    """A forked process and the stub that stands in for it."""

    pid: int
    stub: socket.socket


class ForkServer:
    """Listens on a socket of the file system that only its own user may open."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)  # of a server before this one
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(16)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._runs: dict[int, _Run] = {}
        reader, writer = os.pipe()
        for end in (reader, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._reap(reader))

    def serve(self) -> None:
        """Serves until the process is ended."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        stub, _ = self._listener.accept()
        stub.settimeout(5)
        try:
            request, files = _read_request(stub)
        except (OSError, ValueError):
            stub.close()
            return
        server, pid = os.getpid(), os.fork()
        if pid == 0:
            _become(request, files, server)
        for file in files:
            os.close(file)
        run = _Run(pid, stub)
        self._runs[pid] = run
        self._selector.register(stub, selectors.EVENT_READ, lambda: self._hear(run))

    def _hear(self, run: _Run) -> None:
        """Passes the stub's signals on; a stub that is gone takes its process with it."""
        if run.pid not in self._runs:
            return  # it ended in the same moment
        try:
            numbers = run.stub.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            os.kill(run.pid, number)
        if not numbers:
            self._selector.unregister(run.stub)
            run.stub.close()

    def _reap(self, wakeup: int) -> None:
        os.read(wakeup, 512)
        while self._runs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            run = self._runs.pop(pid)
            if run.stub.fileno() >= 0:
                self._selector.unregister(run.stub)
                with contextlib.suppress(OSError):  # the stub may have been killed meanwhile
                    run.stub.sendall(b"%d" % os.waitstatus_to_exitcode(status))
                run.stub.close()


def _read_request(stub: socket.socket) -> tuple[dict[str, object], list[int]]:
    """Returns what a stub asks for, and its standard streams."""
    head, ancillary, _, _ = stub.recvmsg(8, socket.CMSG_SPACE(_STREAMS * array.array("i").itemsize))
    files = array.array("i")
    for _, _, content in ancillary:
        files.frombytes(content)
    missing, parts = int.from_bytes(head, "big"), []
    if missing > _REQUEST_BYTES:
        raise ValueError(f"a request of {missing} bytes")
    while missing > 0:
        part = stub.recv(missing)
        if not part:
            raise ValueError("the stub went away")
        parts.append(part)
        missing -= len(part)
    request = json.loads(b"".join(parts))
    if request["module"] not in MODULES or len(files) != _STREAMS:
        raise ValueError("not a request of a stub")
    return request, list(files)


def _become(request: dict[str, object], files: list[int], server: int) -> None:
    """Turns a fresh fork into the process that the stub stands in for; does not return."""
    code = 1
    try:
        end_with_parent(server)
        call_this_process(MODULES[str(request["module"])])
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for target, file in enumerate(files):
            os.dup2(file, target)
        os.closerange(_STREAMS, 256)  # the server's own: listener, stubs, wake-up pipe
        environment = request["environment"]
        assert isinstance(environment, dict)
        environment.pop(PARENT, None)  # that is the stub's
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(str(request["folder"]))
        random.seed()
        code = _run(str(request["module"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(module: str) -> int:
    """Runs a module as a program, as a fresh interpreter would; returns its exit status."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()  # they were read when the server was started
    setup_logging(incremental=False)
    sys.argv = [module]
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an interpreter does
    import atexit

    atexit._run_exitfuncs()  # Prefect's last logs and events are sent here
    return code


def main(path: Path) -> None:
    """Imports what runs need, then serves."""
    end_with_parent()
    for module in _IMPORTED:
        importlib.import_module(module)
    if threading.active_count() != 1:
        raise RuntimeError(f"forking is not safe beside the threads {threading.enumerate()}")
    gc.collect()
    gc.freeze()  # so that the forks' collectors leave the shared memory alone
    ForkServer(path).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
