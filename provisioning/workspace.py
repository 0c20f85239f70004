"""The administrator's folder, `ca/` and `kits/`: brings it in line with a federation file.

What exists is never changed, only reported on; what is missing is made. The CA's private key is
read only when there is something to sign, so it can stay off-line the rest of the time.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from prefect_federated.errors import ConfigurationError, KitError
from prefect_federated.kits import CERTIFICATE_FILE, Identity, ServerAddress, load_description
from prefect_federated.provisioning.certificates import CertificateAuthority
from prefect_federated.provisioning.federation_file import FederationFile, load_federation_file
from prefect_federated.provisioning.kit_folder import remove_unfinished, write_folder, write_kit
from prefect_federated.provisioning.report import KitReport, KitStatus, ProvisionReport

MIN_PASSPHRASE_LENGTH = 8
EXPIRES_SOON = timedelta(days=30)
_CA_CERTIFICATE = "ca.crt"
_CA_KEY = "ca.key"


@dataclass(frozen=True)
class Plan:
    """What a federation file asks for that its workspace does not hold yet.

    Args:
        federation: The federation file's content.
        workspace: The administrator's folder.
        makes_ca: Whether the CA has to be made first.
        missing: The participants without a kit, in the file's order.
    """

    federation: FederationFile
    workspace: Path
    makes_ca: bool
    missing: tuple[Identity, ...]

    @property
    def needs_passphrase(self) -> bool:
        """Whether something must be signed, which takes the CA's private key."""
        return self.makes_ca or bool(self.missing)


def plan_provisioning(file: Path, workspace: Path) -> Plan:
    """Return what `provision` would make, without making it.

    Raises:
        FederationFileError: the file is wrong; the message names the line.
        ConfigurationError: the workspace belongs to another federation, or its CA's certificate
            is missing or unreadable.
    """
    federation = load_federation_file(file)
    workspace = workspace.expanduser().absolute()
    ca = _read_ca_certificate(workspace, federation.name)
    kits = workspace / "kits"
    missing = tuple(who for who in federation.identities if not (kits / who.name).exists())
    return Plan(federation, workspace, makes_ca=ca is None, missing=missing)


def provision(file: Path, workspace: Path, *, passphrase: bytes | None) -> ProvisionReport:
    """Make the CA and the startup kits that `file` asks for and `workspace` lacks; report on all.

    Args:
        file: The federation file.
        workspace: Gets `ca/ca.crt`, `ca/ca.key` and `kits/<name>/`; made if it is not there.
        passphrase: Encrypts, or decrypts, the CA's private key; may be None when there is
            nothing to sign (see `Plan.needs_passphrase`).

    Raises:
        FederationFileError: the file is wrong; the message names the line.
        ConfigurationError: the CA's key or its passphrase is missing or wrong, the workspace
            belongs to another federation, or another run is at work in it.
    """
    plan = plan_provisioning(file, workspace)
    if plan.needs_passphrase:
        kits = plan.workspace / "kits"
        kits.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(plan.workspace):
            plan = plan_provisioning(file, workspace)  # another run may have been faster
            remove_unfinished(plan.workspace)
            remove_unfinished(kits)
            _make_missing(plan, passphrase)
    return _report(plan)


def _make_missing(plan: Plan, passphrase: bytes | None) -> None:
    if not plan.needs_passphrase:
        return
    days = plan.federation.certificates
    if not passphrase:
        names = ", ".join(who.name for who in plan.missing) or "the CA"
        raise ConfigurationError(
            f"{plan.workspace}: to make {names} the CA's private key is needed, and its "
            "passphrase was not given. Give it at the prompt, with --passphrase-file or in "
            "PREFECT_FEDERATED_CA_PASSPHRASE."
        )
    if plan.makes_ca:
        if len(passphrase) < MIN_PASSPHRASE_LENGTH:
            raise ConfigurationError(
                f"the passphrase for the new CA has {len(passphrase)} bytes, at least "
                f"{MIN_PASSPHRASE_LENGTH} are expected. Whoever guesses it can join the "
                "federation as anybody: choose several random words."
            )
        ca = CertificateAuthority.create(plan.federation.name, days=days.ca_days)
        files = {
            _CA_CERTIFICATE: ca.certificate.public_bytes(Encoding.PEM),
            _CA_KEY: ca.encrypted_key(passphrase),
        }
        write_folder(plan.workspace / "ca", files, public=(_CA_CERTIFICATE,))
    else:
        ca = _load_ca(plan, passphrase)
    for identity in plan.missing:
        write_kit(
            plan.workspace / "kits" / identity.name,
            ca,
            plan.federation.name,
            identity,
            plan.federation.addresses,
            days=days.participant_days,
        )


def _load_ca(plan: Plan, passphrase: bytes) -> CertificateAuthority:
    certificate = _read_ca_certificate(plan.workspace, plan.federation.name)
    path = plan.workspace / "ca" / _CA_KEY
    try:
        encrypted_key = path.read_bytes()
    except OSError as error:
        names = ", ".join(who.name for who in plan.missing)
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}), and new kits must be signed with it: "
            f"{names}. If the CA's private key is kept off-line, bring it back to this place, "
            "run again and take it away after that."
        ) from error
    if certificate is None or certificate.not_valid_after_utc < datetime.now(UTC):
        raise ConfigurationError(
            f"{path.parent / _CA_CERTIFICATE}: the CA's certificate has expired, so nothing that "
            "it signs would be accepted. Provision the federation anew in another workspace."
        )
    return CertificateAuthority.load(certificate, encrypted_key, passphrase)


def _read_ca_certificate(workspace: Path, federation: str) -> x509.Certificate | None:
    folder = workspace / "ca"
    path = folder / _CA_CERTIFICATE
    if not folder.exists():
        if any((workspace / "kits").glob("[!.]*")):
            raise ConfigurationError(
                f"{workspace}: there are kits but no folder `ca`. Bring back {path}, or give an "
                "empty workspace to make a new federation."
            )
        return None
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: the CA's certificate cannot be read ({error}). Bring it back; each kit "
            "holds a copy, `ca.crt`."
        ) from error
    owners = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if [owner.value for owner in owners] != [federation]:
        raise ConfigurationError(
            f"{path}: belongs to {certificate.subject.rfc4514_string()}, the file is for the "
            f"federation {federation!r}. Each federation needs a workspace of its own: give "
            "another one."
        )
    return certificate


@contextlib.contextmanager
def _locked(workspace: Path) -> Iterator[None]:
    descriptor = os.open(workspace, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{workspace}: another provisioning run is at work here. Wait for it to end."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _report(done: Plan) -> ProvisionReport:
    """Look at the workspace after the run; `done` says what was missing before it."""
    ca = _read_ca_certificate(done.workspace, done.federation.name)
    if ca is None:
        raise ConfigurationError(f"{done.workspace}: the folder `ca` has gone during the run.")
    folder = done.workspace / "kits"
    in_file = {who.name: who for who in done.federation.identities}
    kits = [
        KitReport(
            who.name,
            who,
            folder / who.name,
            KitStatus.MADE,
            _read_certificate(folder / who.name).not_valid_after_utc,
        )
        if who in done.missing
        else _inspect(folder / who.name, who, done.federation.addresses, ca)
        for who in in_file.values()
    ]
    others = sorted(path for path in folder.glob("[!.]*") if path.name not in in_file)
    kits += [_inspect(path, None, done.federation.addresses, ca) for path in others]
    ca_problems = _check_end("the CA's certificate", ca.not_valid_after_utc, "Plan a new CA.")
    return ProvisionReport(
        done.federation.name, done.workspace, done.makes_ca, tuple(kits), tuple(ca_problems)
    )


def _inspect(
    folder: Path,
    wanted: Identity | None,
    servers: tuple[ServerAddress, ...],
    ca: x509.Certificate,
) -> KitReport:
    """Report on a kit that was there. Its private key may have been handed over and deleted."""
    name = folder.name
    anew = f"Delete {folder} and run again to make a new kit, then hand that over."
    status = KitStatus.NOT_IN_FILE if wanted is None else KitStatus.KEPT
    try:
        description = load_description(folder)
        certificate = _read_certificate(folder)
    except KitError as error:
        problem = f"{name}: the kit is damaged: {error} {anew}"
        return KitReport(name, wanted, folder, status, None, (problem,))
    end = certificate.not_valid_after_utc
    held = description.identity
    if wanted is None:
        problem = (
            f"{name}: no longer in the file, but its kit was left and is valid until "
            f"{end:%Y-%m-%d}. Put it back into the file if it went by mistake; deleting {folder} "
            "does not lock out copies that were handed over."
        )
        return KitReport(name, held, folder, status, end, (problem,))
    problems = []
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        problems.append(f"{name}: the kit was not signed by this workspace's CA. {anew}")
    for what, old, new in (
        ("name", held.name, wanted.name),
        ("organisation", held.organisation, wanted.organisation),
        ("role", held.role.value, wanted.role.value),
        ("servers", _list(description.servers), _list(servers)),
    ):
        if old != new:
            problems.append(
                f"{name}: the file now says {what} {new!r}, the kit still holds {old!r}. {anew}"
            )
    problems += _check_end(f"{name}: the certificate", end, anew)
    return KitReport(name, held, folder, status, end, tuple(problems))


def _read_certificate(folder: Path) -> x509.Certificate:
    path = folder / CERTIFICATE_FILE
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KitError(f"{path}: the certificate cannot be read ({error}).") from error


def _check_end(what: str, end: datetime, advice: str) -> list[str]:
    left = end - datetime.now(UTC)
    if left > EXPIRES_SOON:
        return []
    when = "expired" if left < timedelta() else f"expires in {left.days} days,"
    return [f"{what} {when} on {end:%Y-%m-%d}. {advice}"]


def _list(servers: tuple[ServerAddress, ...]) -> str:
    return ", ".join(f"{server.name} at {server}" for server in servers)
