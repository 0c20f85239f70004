"""Commands that cannot do what they are asked: they say why and what to do, and end at once."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from prefect_federated.kits import CERTIFICATE_FILE
from prefect_federated.provisioning import provision
from tests.agents.network import PASSPHRASE
from tests.agents.network import Federation as Workspace
from tests.integration.running import PATIENCE_S, Running, eventually

SERVER = ("server", "start")
NOT_SIGNED = "not signed by the CA of federation 'sandbox'"


@dataclass(frozen=True)
class Said:
    """What a command said before it ended."""

    status: int
    text: str


def run(folder: Path, *arguments: str, kit: Path) -> Said:
    """Runs `prefect-federated` with a kit until it ends by itself."""
    state = () if arguments[0] == "connect" else ("--state", str(folder / "state"))
    ended = subprocess.run(
        [sys.executable, "-m", "prefect_federated", *arguments, "--kit", str(kit), *state],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    return Said(ended.returncode, " ".join(ended.stderr.split()))


@pytest.fixture(scope="module")
def other(federation: Running, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Returns another federation of the same name, whose kits lead to the running server."""
    folder = tmp_path_factory.mktemp("other")
    description = yaml.safe_load((federation.sandbox.folder / "federation.yaml").read_text())
    description["servers"][0]["organisation"] = "University"  # as `Workspace.reissued` has it
    file = folder / "federation.yaml"
    file.write_text(yaml.safe_dump(description))
    provision(file, folder, passphrase=PASSPHRASE)
    return Workspace(folder)


def test_a_kit_of_another_role_is_refused_with_what_it_is_for(
    federation: Running, tmp_path: Path
) -> None:
    kit = federation.sandbox.kit_folder("site-1")
    said = run(tmp_path, *SERVER, kit=kit)
    assert said.status == 3
    assert "this is the kit of site 'site-1'" in said.text
    assert f"`prefect-federated site start --kit {kit}`" in said.text


def test_an_expired_kit_is_refused_with_what_to_do(other: Workspace, tmp_path: Path) -> None:
    kit = other.kit("server")
    expired = tmp_path / "kit"
    shutil.copytree(kit.folder, expired)
    made = other.reissued(kit, tmp_path, days_ago=30)
    shutil.copy(made.certificate, expired / CERTIFICATE_FILE)
    said = run(tmp_path, *SERVER, kit=expired)
    assert said.status == 3
    assert "the certificate expired at" in said.text
    assert "Ask the federation's administrator for a new kit" in said.text


def test_a_users_kit_of_another_federation_is_refused_by_name(
    other: Workspace, tmp_path: Path
) -> None:
    said = run(tmp_path, "connect", kit=other.kit("admin").folder)
    assert said.status == 4
    assert NOT_SIGNED in said.text
    assert str(other.kit("admin").folder) in said.text


def test_a_site_with_a_kit_of_another_federation_says_so_and_waits(
    other: Workspace, tmp_path: Path
) -> None:
    """It waits because the address may be put right at the server's side."""
    kit, log = other.kit("site-1").folder, tmp_path / "site.log"
    command = [sys.executable, "-m", "prefect_federated", "site", "start", "--kit", str(kit)]
    with log.open("wb") as file:
        site = subprocess.Popen([*command, "--state", str(tmp_path / "state")], stderr=file)
    try:
        eventually(lambda: NOT_SIGNED in log.read_text(), "the site says what is wrong")
        assert site.poll() is None
    finally:
        site.terminate()
        assert site.wait(PATIENCE_S) == 0
    assert "Traceback" not in log.read_text()


def test_a_port_that_is_taken_is_said_at_once(federation: Running, tmp_path: Path) -> None:
    said = run(tmp_path, *SERVER, kit=federation.sandbox.kit_folder("server"))
    assert said.status == 2
    assert federation.sandbox.ui_url.removeprefix("https://") in said.text
    assert "choose another port" in said.text
