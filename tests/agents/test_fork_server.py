"""Warm starts, with a real fork server; the API of the runs is a port that stays silent."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from prefect_federated.agents import fork_server, fork_stub

Start = Callable[[], tuple["subprocess.Popen[bytes]", psutil.Process]]


@pytest.fixture(scope="module")
def socket_path() -> Iterator[Path]:
    """A running fork server's socket."""
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        path = Path(folder) / "fork"
        command = [sys.executable, "-m", fork_server.__name__, str(path)]
        with subprocess.Popen(command) as server:
            while not path.exists():
                assert server.poll() is None
                time.sleep(0.01)
            yield path
            server.terminate()


def _stub(path: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", fork_stub.__file__, str(path), "prefect.engine"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture
def start(socket_path: Path) -> Iterator[Start]:
    """Starts a run that waits for its API for ever; gives its stub and its process."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        def started() -> tuple["subprocess.Popen[bytes]", psutil.Process]:
            run_id = str(uuid4())
            stub = _stub(
                socket_path,
                {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT__FLOW_RUN_ID": run_id},
            )
            connection, _ = silent.accept()  # the run is at work: it has asked for itself
            peer = connection.getpeername()
            for process in psutil.process_iter():
                if any(c.laddr == peer for c in _connections(process)):
                    return stub, process
            raise AssertionError("the run's process was not found")

        yield started


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections())
    except psutil.Error:
        return []


def test_a_run_is_a_fork_and_its_output_and_status_are_the_stubs(socket_path: Path) -> None:
    stub = _stub(socket_path, {"PREFECT__FLOW_RUN_ID": "no-id"})
    output, _ = stub.communicate(timeout=30)
    assert b"Invalid flow run id" in output
    assert stub.returncode == 1


def test_a_killed_run_ends_its_stub_by_the_same_signal(start: Start) -> None:
    stub, run = start()
    run.kill()
    stub.communicate(timeout=60)
    assert stub.returncode == -signal.SIGKILL


def test_a_killed_stub_takes_its_run_with_it(start: Start) -> None:
    stub, run = start()
    stub.kill()
    psutil.wait_procs([run], timeout=60)
    assert not run.is_running() or run.status() == psutil.STATUS_ZOMBIE
    stub.communicate(timeout=60)


def test_a_signal_to_the_stub_reaches_the_run(start: Start) -> None:
    stub, run = start()
    stub.send_signal(signal.SIGTERM)
    stub.communicate(timeout=60)
    assert stub.returncode != 0
    assert not run.is_running() or run.status() == psutil.STATUS_ZOMBIE


def test_without_a_server_the_stub_runs_the_module_itself(tmp_path: Path) -> None:
    stub = _stub(tmp_path / "nobody", {"PREFECT__FLOW_RUN_ID": "no-id"})
    output, _ = stub.communicate(timeout=60)
    assert b"Invalid flow run id" in output
    assert stub.returncode == 1


def test_what_is_not_a_stubs_request_is_dropped_and_the_server_lives(socket_path: Path) -> None:
    for junk in (b"", b"x" * 100, (5).to_bytes(8, "big") + b"notjs", b"\xff" * 8):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_path))
            client.sendall(junk)
    test_a_run_is_a_fork_and_its_output_and_status_are_the_stubs(socket_path)


def test_a_stub_whose_worker_and_server_have_died_starts_nothing(tmp_path: Path) -> None:
    stub = _stub(tmp_path / "nobody", {fork_stub.PARENT: str(os.getpid() + 1)})
    assert stub.communicate()[0] == b""
    assert stub.returncode == 1


def test_a_run_that_is_started_without_a_fork_server_ends_with_its_worker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "PREFECT_API_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/api",
            "PREFECT__FLOW_RUN_ID": str(uuid4()),
        }
        stub = [sys.executable, "-I", "-S", fork_stub.__file__, str(tmp_path / "nobody")]
        program = f"import subprocess; subprocess.run({[*stub, 'prefect.engine']!r})"
        with subprocess.Popen([sys.executable, "-c", program], env=environment) as worker:
            connection, _ = silent.accept()  # the run is at work: it has asked for itself
            with connection:
                run = psutil.Process(worker.pid).children()[0]
                assert "prefect.engine" in run.cmdline()
                worker.kill()
                run.wait(timeout=10)
    assert not run.is_running()
