import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from prefect_federated.agents.processes import PARENT, Child
from prefect_federated.errors import FederatedError


def _script(folder: Path, text: str) -> list[str]:
    file = folder / "script.py"
    file.write_text(textwrap.dedent(text))
    return [sys.executable, str(file)]


async def _until(happened: Path, pieces: int) -> None:
    while not happened.exists() or len(happened.read_text().splitlines()) < pieces:
        await asyncio.sleep(0.01)


def test_a_child_that_ends_is_started_again(tmp_path: Path) -> None:
    command = _script(tmp_path, f"open({str(tmp_path / 'starts')!r}, 'a').write('once\\n')")

    async def run() -> None:
        child = asyncio.create_task(Child("short", command, os.environ).run())
        await asyncio.wait_for(_until(tmp_path / "starts", 2), 20)
        child.cancel()
        await asyncio.gather(child, return_exceptions=True)

    asyncio.run(run())


def test_a_child_that_ends_again_and_again_is_an_error(tmp_path: Path) -> None:
    command = _script(tmp_path, "raise SystemExit(7)")
    with pytest.raises(FederatedError, match=r"broken ended 5 times .* exit status 7"):
        asyncio.run(Child("broken", command, os.environ).run())


def test_a_child_whose_configuration_is_wrong_is_not_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    command = _script(tmp_path, f"open({str(starts)!r}, 'a').write('once\\n'); raise SystemExit(2)")
    with pytest.raises(FederatedError, match="cannot start"):
        asyncio.run(Child("wrong", command, os.environ).run())
    assert starts.read_text() == "once\n"


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    command = _script(
        tmp_path,
        f"""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(tmp_path / "up")!r}, "w").write("up\\n")
        while True:
            time.sleep(1)
        """,
    )

    async def run() -> int | None:
        child = Child("deaf", command, os.environ)
        task = asyncio.create_task(child.run())
        await asyncio.wait_for(_until(tmp_path / "up", 1), 20)
        process = child._process
        assert process is not None
        await child.stop(patience_s=0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return process.returncode

    assert asyncio.run(run()) == -9


def test_a_process_ends_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = f"""
from prefect_federated.agents.processes import end_with_parent
import os, time
end_with_parent()
open({str(note)!r} + ".part", "w").write(str(os.getpid()))
os.rename({str(note)!r} + ".part", {str(note)!r})
time.sleep(60)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        while not note.exists():
            assert process.poll() is None
        grandchild = psutil.Process(int(note.read_text()))
        process.kill()
        grandchild.wait(timeout=10)
    assert not grandchild.is_running()


def test_a_process_whose_parent_died_while_it_was_starting_ends_as_well() -> None:
    program = "from prefect_federated.agents.processes import end_with_parent; end_with_parent()"
    command = [sys.executable, "-c", f"{program}; print('goes on')"]
    for parent, says in ((os.getpid(), b"goes on\n"), (os.getpid() + 1, b"")):
        environment = {**os.environ, PARENT: str(parent)}
        assert subprocess.run(command, env=environment, stdout=subprocess.PIPE).stdout == says
