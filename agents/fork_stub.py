"""Stands in for a run's process that `fork_server` forks; see there. Imports little: it is to be
quick. Run as `python -I -S fork_stub.py SOCKET MODULE`; without a server it runs the module itself.
"""

import array
import json
import os
import signal
import socket
import sys
import time

PARENT = "PREFECT_FEDERATED_PARENT"  # as in `processes`, which takes long to import
_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 5.0


def main(path: str, module: str) -> None:
    """Asks for a fork, passes signals on to it, and ends as it ends."""
    server = socket.socket(socket.AF_UNIX)
    if not connects(server, path):
        os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 as given by us
    request = {"module": module, "environment": dict(os.environ), "folder": os.getcwd()}
    content = json.dumps(request).encode()
    streams = array.array("i", [0, 1, 2])
    server.sendmsg(
        [len(content).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
    )
    server.sendall(content)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    status = server.recv(64)
    end_as(int(status) if status else 1)


def connects(server: socket.socket, path: str) -> bool:
    """Connects to the fork server; one that is just starting is waited for, which is quicker."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            server.connect(path)
        except OSError:
            end_with_worker()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def end_with_worker() -> None:
    """Makes this process, whatever it becomes, end at once when its worker dies (Linux).

    A run that is forked ends with the fork server, and that with the worker.
    """
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.environ.get(PARENT, str(os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != parent:
        os._exit(1)  # it has died already


def end_as(status: int) -> None:
    """Ends with an exit status, or (below 0) by the same signal."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
