"""Provisioning again and again: what is there stays, what is missing is made."""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from prefect_federated.errors import ConfigurationError
from prefect_federated.kits import Identity, Role, ServerAddress, load_kit
from prefect_federated.provisioning import KitStatus, plan_provisioning, provision
from prefect_federated.provisioning.certificates import CertificateAuthority
from prefect_federated.provisioning.kit_folder import write_kit
from tests.provisioning.conftest import FEDERATION, PASSPHRASE, Administrator

PARTICIPANTS = ["server-1", "site-1", "alice"]


def test_each_participant_gets_a_kit_that_loads(administrator: Administrator) -> None:
    report = administrator.provision()
    assert report.ca_made
    assert [kit.name for kit in report.made] == PARTICIPANTS
    assert report.problems == ()
    for name in PARTICIPANTS:
        kit = load_kit(administrator.kit(name))
        assert kit.identity == report.kit(name).identity
        assert kit.federation == "heart"
        assert kit.servers == (ServerAddress("server-1", "127.0.0.1", 8443),)
    assert load_kit(administrator.kit("server-1")).own_address.port == 8443


def test_private_files_are_readable_by_their_owner_only(administrator: Administrator) -> None:
    administrator.provision()
    public = {"kit.json", "ca.crt", "participant.crt", "README.txt"}
    private = set()
    for path in administrator.workspace.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.name in public:
            assert mode == 0o644, path
        else:
            assert mode == 0o600, path
            private.add(path.name)
    assert private == {"ca.key", "participant.key", "browser.p12", "browser-password.txt"}


def test_a_kit_holds_what_its_role_needs_and_nothing_else(administrator: Administrator) -> None:
    administrator.provision()
    every = {"kit.json", "ca.crt", "participant.crt", "participant.key", "README.txt"}
    for name, more, command in (
        ("server-1", set(), "prefect-federated server start --kit"),
        ("site-1", set(), "prefect-federated site start --kit"),
        ("alice", {"browser.p12", "browser-password.txt"}, "prefect-federated connect --kit"),
    ):
        folder = administrator.kit(name)
        assert {path.name for path in folder.iterdir()} == every | more
        readme = (folder / "README.txt").read_text()
        assert command in readme
        assert "https://127.0.0.1:8443" in readme
    assert "listens on port 8443" in (administrator.kit("server-1") / "README.txt").read_text()


def test_the_ca_key_is_encrypted_with_the_passphrase(administrator: Administrator) -> None:
    administrator.provision()
    content = (administrator.workspace / "ca" / "ca.key").read_bytes()
    assert content.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    load_pem_private_key(content, PASSPHRASE)
    with pytest.raises(ValueError, match="password"):
        load_pem_private_key(content, b"another passphrase")


def test_running_again_changes_nothing_and_needs_no_key(administrator: Administrator) -> None:
    administrator.provision()
    (administrator.workspace / "ca" / "ca.key").unlink()
    before = administrator.contents()
    report = administrator.provision(passphrase=None)
    assert administrator.contents() == before
    assert not report.ca_made
    assert {kit.status for kit in report.kits} == {KitStatus.KEPT}
    assert report.problems == ()


def test_adding_a_site_leaves_the_other_kits_untouched(administrator: Administrator) -> None:
    administrator.provision()
    before = administrator.contents()
    administrator.edit("users:", "  - {name: site-2, organisation: Village Hospital}\nusers:")
    report = administrator.provision()
    after = administrator.contents()
    assert [kit.name for kit in report.made] == ["site-2"]
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in set(after) - set(before)} == {"site-2"}
    assert load_kit(administrator.kit("site-2")).identity.organisation == "Village Hospital"


def test_adding_a_site_without_the_ca_key_asks_to_bring_it_back(
    administrator: Administrator,
) -> None:
    administrator.provision()
    key = administrator.workspace / "ca" / "ca.key"
    away = key.rename(administrator.file.parent / "stick.key")
    administrator.edit("users:", "  - {name: site-2, organisation: Village Hospital}\nusers:")
    with pytest.raises(ConfigurationError, match=r"must be signed.*site-2.*bring it back"):
        administrator.provision()
    assert not administrator.kit("site-2").exists()
    away.rename(key)
    assert [kit.name for kit in administrator.provision().made] == ["site-2"]


@pytest.mark.parametrize(
    ("passphrase", "message"),
    [
        (b"not the passphrase", "the passphrase is wrong"),
        (None, "its passphrase was not given"),
        (b"", "its passphrase was not given"),
    ],
)
def test_a_wrong_passphrase_makes_nothing(
    administrator: Administrator, passphrase: bytes | None, message: str
) -> None:
    administrator.provision()
    administrator.edit("users:", "  - {name: site-2, organisation: Village Hospital}\nusers:")
    before = administrator.contents()
    with pytest.raises(ConfigurationError, match=message):
        administrator.provision(passphrase=passphrase)
    assert administrator.contents() == before


def test_a_new_ca_needs_a_passphrase_of_some_length(administrator: Administrator) -> None:
    with pytest.raises(ConfigurationError, match="has 5 bytes, at least 8"):
        administrator.provision(passphrase=b"short")
    with pytest.raises(ConfigurationError, match="was not given"):
        administrator.provision(passphrase=None)
    assert administrator.contents() == {}


def test_another_ca_key_is_refused(administrator: Administrator, tmp_path: Path) -> None:
    administrator.provision()
    provision(administrator.file, tmp_path / "other", passphrase=PASSPHRASE)
    shutil.copy(tmp_path / "other/ca/ca.key", administrator.workspace / "ca/ca.key")
    administrator.edit("users:", "  - {name: site-2, organisation: Village Hospital}\nusers:")
    with pytest.raises(ConfigurationError, match="does not belong to the CA's certificate"):
        administrator.provision()


def test_a_participant_removed_from_the_file_keeps_its_kit_and_is_named(
    administrator: Administrator,
) -> None:
    administrator.provision()
    before = administrator.contents()
    administrator.edit("  - {name: site-1, organisation: City Hospital}\n", "")
    administrator.edit("sites:\n", "")
    report = administrator.provision(passphrase=None)
    assert administrator.contents() == before
    assert report.kit("site-1").status is KitStatus.NOT_IN_FILE
    assert len(report.problems) == 1
    assert re.search(r"site-1: no longer in the file.*does not lock out", report.problems[0])


@pytest.mark.parametrize(
    ("old", "new", "names", "says"),
    [
        ("127.0.0.1:8443", "127.0.0.1:9443", PARTICIPANTS, "servers 'server-1 at 127.0.0.1:9443'"),
        ("City Hospital", "Town Hospital", ["site-1"], "the kit still holds 'City Hospital'"),
        ("project_admin", "member", ["alice"], "role 'member'"),
    ],
)
def test_a_change_of_an_existing_participant_is_told_with_what_to_do(
    administrator: Administrator, old: str, new: str, names: list[str], says: str
) -> None:
    administrator.provision()
    before = administrator.contents()
    administrator.edit(old, new)
    report = administrator.provision()
    assert administrator.contents() == before
    assert [kit.name for kit in report.kits if kit.problems] == names
    for name, problem in zip(names, report.problems, strict=True):
        assert says in problem
        assert f"Delete {administrator.kit(name)} and run again" in problem
        shutil.rmtree(administrator.kit(name))
    again = administrator.provision()
    assert [kit.name for kit in again.made] == names
    assert again.problems == ()


def test_a_workspace_of_another_federation_is_refused(administrator: Administrator) -> None:
    administrator.provision()
    administrator.edit("name: heart\n", "name: lung\n")
    with pytest.raises(ConfigurationError, match=r"'lung'.*workspace of its own"):
        administrator.provision()


def test_kits_without_a_ca_are_not_given_a_new_one(administrator: Administrator) -> None:
    administrator.provision()
    shutil.rmtree(administrator.workspace / "ca")
    with pytest.raises(ConfigurationError, match="there are kits but no folder `ca`"):
        administrator.provision()


def test_a_damaged_or_foreign_kit_is_reported(administrator: Administrator, tmp_path: Path) -> None:
    administrator.provision()
    (administrator.kit("alice") / "kit.json").write_text("{}")
    provision(administrator.file, tmp_path / "other", passphrase=PASSPHRASE)
    shutil.rmtree(administrator.kit("site-1"))
    shutil.copytree(tmp_path / "other/kits/site-1", administrator.kit("site-1"))
    report = administrator.provision()
    assert "the kit is damaged" in report.kit("alice").problems[0]
    assert "not signed by this workspace's CA" in report.kit("site-1").problems[0]
    assert report.kit("server-1").problems == ()


def test_a_private_key_that_was_handed_over_and_deleted_is_no_problem(
    administrator: Administrator,
) -> None:
    administrator.provision()
    (administrator.kit("site-1") / "participant.key").unlink()
    assert administrator.provision(passphrase=None).problems == ()


def test_certificates_that_expire_soon_are_named(administrator: Administrator) -> None:
    administrator.edit("users:", "certificates: {participant_days: 20}\nusers:")
    assert administrator.provision().problems == ()  # they were asked for
    problems = administrator.provision(passphrase=None).problems
    assert [problem.split(":")[0] for problem in problems] == PARTICIPANTS
    assert all("expires in 19 days" in problem for problem in problems)


def test_expired_certificates_are_named(administrator: Administrator, tmp_path: Path) -> None:
    administrator.provision()
    key = (administrator.workspace / "ca/ca.key").read_bytes()
    certificate = (administrator.workspace / "ca/ca.crt").read_bytes()
    ca = CertificateAuthority.load(x509.load_pem_x509_certificate(certificate), key, PASSPHRASE)
    shutil.rmtree(administrator.kit("site-1"))
    write_kit(
        administrator.kit("site-1"),
        ca,
        "heart",
        Identity("site-1", "City Hospital", Role.SITE),
        (ServerAddress("server-1", "127.0.0.1", 8443),),
        days=3,
        now=datetime.now(UTC) - timedelta(days=9),
    )
    (problem,) = administrator.provision(passphrase=None).problems
    assert re.search(r"site-1: the certificate expired on \d{4}-\d\d-\d\d\. Delete", problem)


def test_validity_is_that_of_the_file_but_ends_with_the_ca(administrator: Administrator) -> None:
    administrator.edit("users:", "certificates: {participant_days: 5, ca_days: 9}\nusers:")
    report = administrator.provision()
    for kit in report.kits:
        assert kit.expires is not None
        left = kit.expires - datetime.now(UTC)
        assert timedelta(days=4, hours=23) < left <= timedelta(days=5)
    administrator.edit("participant_days: 5, ca_days: 9", "participant_days: 90, ca_days: 90")
    shutil.rmtree(administrator.kit("alice"))
    expires = administrator.provision().kit("alice").expires
    assert expires is not None
    assert expires - datetime.now(UTC) <= timedelta(days=9)


def test_a_run_killed_while_it_writes_leaves_no_half_kit(administrator: Administrator) -> None:
    program = f"""
import os, sys
from pathlib import Path
from prefect_federated.provisioning import provision
real, made = os.fsync, []
def die_in_the_second_kit(descriptor):
    real(descriptor)
    made.append(descriptor)
    if len(made) == 12:
        os.kill(os.getpid(), 9)
os.fsync = die_in_the_second_kit
provision(Path({str(administrator.file)!r}), Path({str(administrator.workspace)!r}),
          passphrase={PASSPHRASE!r})
"""
    died = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert died.returncode == -9, died.stderr
    kits = administrator.workspace / "kits"
    assert [path.name for path in kits.glob("[!.]*")] == ["server-1"]
    assert len(list(kits.glob(".site-1.unfinished-*"))) == 1
    load_kit(kits / "server-1")
    before = (kits / "server-1" / "participant.crt").read_bytes()
    report = administrator.provision()
    assert [kit.name for kit in report.made] == ["site-1", "alice"]
    assert (kits / "server-1" / "participant.crt").read_bytes() == before
    assert sorted(path.name for path in kits.iterdir()) == sorted(PARTICIPANTS)


def test_two_runs_at_once_do_not_disturb_each_other(administrator: Administrator) -> None:
    administrator.workspace.mkdir()
    other_run = os.open(administrator.workspace, os.O_RDONLY)
    fcntl.flock(other_run, fcntl.LOCK_EX)
    with pytest.raises(ConfigurationError, match="another provisioning run is at work"):
        administrator.provision()
    assert administrator.contents() == {}
    os.close(other_run)
    assert administrator.provision().ca_made


def test_the_plan_says_whether_the_passphrase_is_needed(administrator: Administrator) -> None:
    plan = plan_provisioning(administrator.file, administrator.workspace)
    assert plan.makes_ca
    assert plan.needs_passphrase
    assert not administrator.workspace.exists()
    administrator.provision()
    assert not plan_provisioning(administrator.file, administrator.workspace).needs_passphrase


def test_a_second_server_is_told_to_all_who_know_only_the_first(
    administrator: Administrator,
) -> None:
    administrator.provision()
    administrator.write(
        FEDERATION.replace(
            "sites:", '  - {name: server-2, address: "b.org:443", organisation: U}\nsites:'
        )
    )
    report = administrator.provision()
    assert [kit.name for kit in report.made] == ["server-2"]
    assert [kit.name for kit in report.kits if kit.problems] == PARTICIPANTS
    assert len(load_kit(administrator.kit("server-2")).servers) == 2
