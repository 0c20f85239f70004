"""`prefect-federated provision` on the terminal."""

import getpass
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest
from rich.console import Console

from prefect_federated.cli import provision as command
from prefect_federated.errors import ConfigurationError
from prefect_federated.kits import load_kit
from tests.provisioning.conftest import PASSPHRASE, Administrator


def run(administrator: Administrator, *more: str) -> None:
    app = cyclopts.App()
    app.command(command.provision_command, name="provision")
    workspace = ["--workspace", str(administrator.workspace)]
    app(
        ["provision", str(administrator.file), *workspace, *more],
        exit_on_error=False,
        result_action="return_value",
    )


@pytest.fixture(autouse=True)
def no_passphrase_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(command.PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def type_at_prompt(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Iterator[str]:
    remaining = iter(answers)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(remaining))
    return remaining


def test_the_passphrase_comes_from_a_file(
    administrator: Administrator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE + b"\r\nnot this\n")
    run(administrator, "--passphrase-file", str(file))
    load_kit(administrator.kit("site-1"))
    printed = capsys.readouterr().out
    for expected in ("server-1", "City Hospital", "made", "ca.key off-line", "site start --kit"):
        assert expected in printed
    assert PASSPHRASE.decode() not in printed
    run(administrator)
    assert "nothing was changed" in capsys.readouterr().out
    administrator.edit("users:", "  - {name: site-2, organisation: Village}\nusers:")
    administrator.provision()  # the first line was the passphrase


def test_the_passphrase_comes_from_the_environment(
    administrator: Administrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(command.PASSPHRASE_VARIABLE, PASSPHRASE.decode())
    run(administrator)
    load_kit(administrator.kit("alice"))


def test_a_new_passphrase_is_asked_for_twice_and_a_known_one_once(
    administrator: Administrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = type_at_prompt(monkeypatch, "eight or more", "eight or more", "eight or more")
    run(administrator)
    run(administrator)  # nothing to sign, so it does not ask
    administrator.edit("users:", "  - {name: site-2, organisation: Village}\nusers:")
    run(administrator)
    load_kit(administrator.kit("site-2"))
    assert next(answers, None) is None


def test_passphrases_that_differ_make_nothing(
    administrator: Administrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_at_prompt(monkeypatch, "eight or more", "eight or less")
    with pytest.raises(ConfigurationError, match="differ; nothing was made"):
        run(administrator)
    assert not administrator.workspace.exists()


def test_without_a_terminal_it_says_how_to_give_the_passphrase(
    administrator: Administrator, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"--passphrase-file FILE, or set PREFECT_"):
        run(administrator)
    with pytest.raises(ConfigurationError, match=r"cannot be read"):
        run(administrator, "--passphrase-file", str(tmp_path / "absent"))
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match=r"the first line is empty"):
        run(administrator, "--passphrase-file", str(tmp_path / "empty"))


def test_there_is_no_way_to_give_the_passphrase_as_an_argument(
    administrator: Administrator,
) -> None:
    for option in ("--passphrase", "--no-passphrase"):
        with pytest.raises(cyclopts.CycloptsError):
            run(administrator, option, "secret-secret")


def test_what_needs_attention_is_printed_whole_and_as_it_was_written(
    administrator: Administrator,
) -> None:
    administrator.provision()
    administrator.edit("City Hospital", '"[red]City[/] Hospital"')
    printed = io.StringIO()
    console = Console(file=printed, width=60)
    command.print_report(administrator.provision(), console)
    assert "was there (!)" in printed.getvalue()
    assert "now says organisation '[red]City[/] Hospital'" in printed.getvalue()
    assert f"Delete {administrator.kit('site-1')} and run again" in printed.getvalue()
