"""`prefect-federated connect` as a process, with a stub of the API under mutual TLS."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_federated.cli.connect import connect
from prefect_federated.errors import ConfigurationError, ConnectionFailed
from prefect_federated.kits import DESCRIPTION_FILE
from tests.agents.network import Federation, free_port, stub_api

CLI = """\
from cyclopts import App
app = App()
app.command("prefect_federated.cli.connect:connect", name="connect")
app()
"""
GET_HEALTH = """\
import os, urllib.request
print(urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health").read().decode())
"""


def kit_folder(heart: Federation, folder: Path, port: int) -> Path:
    """Copies alice's kit and lets it lead to a port of this test."""
    kit = folder / "alice"
    kit.mkdir()
    for path in heart.kit("alice").folder.iterdir():
        content = path.read_bytes()
        if path.name == DESCRIPTION_FILE:
            description = json.loads(content)
            description["servers"][0]["port"] = port
            content = json.dumps(description).encode()
        (kit / path.name).write_bytes(content)
        (kit / path.name).chmod(0o600)
    return kit


@pytest.fixture
def kit(heart: Federation, tmp_path: Path) -> Iterator[Path]:
    with stub_api(heart.kit("server-1")) as api:
        yield kit_folder(heart, tmp_path, api.port)


def start(kit: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CLI, "connect", "--kit", str(kit), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(code: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-u", "-c", code)


def test_a_command_reaches_the_api(kit: Path) -> None:
    output, errors = start(kit, *python(GET_HEALTH)).communicate(timeout=30)
    assert (output, errors) == ("true\n", "")


def test_the_commands_exit_status_is_ours(kit: Path) -> None:
    assert start(kit, *python("raise SystemExit(7)")).wait(timeout=30) == 7


def test_the_commands_own_options_are_left_to_it(kit: Path) -> None:
    code = "import sys; print(sys.argv[1:])"
    process = start(kit, *python(code), "--port", "1", "--kit", "x", "--help", "--")
    assert process.communicate(timeout=30)[0] == "['--port', '1', '--kit', 'x', '--help', '--']\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_to_the_command(kit: Path, number: signal.Signals) -> None:
    code = (
        "import signal, sys\n"
        f"signal.signal({number.value}, lambda *_: sys.exit(9))\n"
        "print('ready'); signal.pause()"
    )
    process = start(kit, *python(code))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == 9
    process.communicate()


def test_a_command_that_dies_by_a_signal_gives_the_shells_status(kit: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert start(kit, *python(code)).wait(timeout=30) == 128 + signal.SIGKILL


def test_without_a_command_it_prints_the_url_and_stays_until_it_is_stopped(kit: Path) -> None:
    port = free_port()
    process = start(kit, "--port", str(port))
    assert process.stdout is not None
    url = f"http://127.0.0.1:{port}/api"
    assert process.stdout.readline() == f"export PREFECT_API_URL={url}\n"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/health", timeout=20) as answer:
        assert answer.read() == b"true"
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert "Ctrl-C" in process.stdout.read()
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_cloud_key_is_not_handed_to_the_command(
    kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_something")
    process = start(kit, *python("import os; print('PREFECT_API_KEY' in os.environ)"))
    assert process.communicate(timeout=30)[0] == "False\n"


def test_a_server_that_is_down_is_an_error_before_the_command_runs(
    heart: Federation, tmp_path: Path
) -> None:
    kit = kit_folder(heart, tmp_path, free_port())
    with pytest.raises(ConnectionFailed, match="refuses connections"):
        connect("touch", str(tmp_path / "ran"), kit=kit)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_command_is_named(kit: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'no-such-command'.*PATH"):
        connect("no-such-command", kit=kit)


def test_it_starts_without_importing_prefect() -> None:
    code = "import sys, prefect_federated.cli.connect; print('prefect' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert shown.stdout == "False\n"
