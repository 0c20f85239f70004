"""The startup kit: one participant's folder, with all that it needs to join its federation.

Reads and checks a kit, says who a certificate belongs to, and makes the two TLS contexts that
everything here connects and listens with. It makes no certificates: that is `provisioning`.
"""

import ipaddress
import ssl
import stat
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_federated.errors import KitError

DESCRIPTION_FILE = "kit.json"
CA_FILE = "ca.crt"
CERTIFICATE_FILE = "participant.crt"
PRIVATE_KEY_FILE = "participant.key"


class Role(StrEnum):
    """What a participant is; it stands in the certificate, so a change needs a new one."""

    SERVER = "server"
    SITE = "site"
    PROJECT_ADMIN = "project_admin"
    ORG_ADMIN = "org_admin"
    LEAD = "lead"
    MEMBER = "member"

    @property
    def is_user(self) -> bool:
        """Whether a person, rather than a server or a site, holds the kit."""
        return self not in (Role.SERVER, Role.SITE)

    @property
    def start_command(self) -> str:
        """The `prefect-federated` command that a kit of this role is for, without `--kit`."""
        if self is Role.SERVER:
            return "prefect-federated server start"
        if self is Role.SITE:
            return "prefect-federated site start"
        return "prefect-federated connect"


@dataclass(frozen=True)
class Identity:
    """Who a certificate belongs to: unique name, organisation and role."""

    name: str
    organisation: str
    role: Role


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is reached: `host` is a DNS name or an IP address without brackets."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class KitDescription(BaseModel):
    """What `kit.json` holds; the certificate, not this file, proves the identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    federation: str = Field(min_length=1)
    name: str = Field(min_length=1)
    organisation: str = Field(min_length=1)
    role: Role
    servers: tuple[ServerAddress, ...] = Field(min_length=1)

    @property
    def identity(self) -> Identity:
        """The participant that this kit was made for."""
        return Identity(self.name, self.organisation, self.role)


@dataclass(frozen=True)
class StartupKit:
    """A participant's checked startup kit; make one with `load_kit`."""

    folder: Path
    federation: str
    identity: Identity
    servers: tuple[ServerAddress, ...]
    ca: Path
    certificate: Path
    private_key: Path

    @property
    def api_name(self) -> str:
        """Logical TLS name of the API (SNI and certificate); no DNS server knows it."""
        return f"api.{self.federation}"

    def job_name(self, job: str) -> str:
        """Return the logical TLS name of a job's endpoint; `job` is a single DNS label."""
        return f"{job}.jobs.{self.federation}"

    @property
    def own_address(self) -> ServerAddress:
        """The address that this server is reached at and whose port it listens on.

        Raises:
            KitError: this is not a server's kit.
        """
        for server in self.servers:
            if self.identity.role is Role.SERVER and server.name == self.identity.name:
                return server
        raise KitError(
            f"{self.folder}: the kit of {self.identity.role} {self.identity.name!r} has no address "
            "to listen on. Use a server's kit."
        )

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS 1.3 context for connecting: shows our certificate, checks CA and host name.

        A server that refuses our certificate says so at the first read, not in the handshake:
        that is how TLS 1.3 works.

        Raises:
            KitError: the kit's files cannot be read any more.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def server_context(self) -> ssl.SSLContext:
        """Return a TLS 1.3 context for listening that lets in this federation's participants only.

        Sessions are not resumed, so each connection shows its certificate anew.

        Raises:
            KitError: the kit's files cannot be read any more.
        """
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            context.load_verify_locations(self.ca)
            context.load_cert_chain(self.certificate, self.private_key)
        except OSError as error:  # ssl.SSLError is one
            raise KitError(
                f"{self.folder}: the kit's certificate, key or CA cannot be loaded ({error}). "
                "Restore the folder from the one that the federation's administrator made."
            ) from error
        return context


def identity_of(certificate: bytes) -> Identity:
    """Return who a certificate, PEM or DER, belongs to. It does not check who signed it.

    Raises:
        KitError: it is no certificate, or its subject lacks a name, organisation or known role.
    """
    return _identity(_parse_certificate(certificate, "the certificate"))


def load_kit(folder: Path | str, *, role: Role | Collection[Role] | None = None) -> StartupKit:
    """Return the startup kit in `folder` after checking all that can be checked without a network.

    Args:
        folder: The kit's folder, as `prefect-federated provision` made it.
        role: The role, or the roles, that the command can work with; None for any.

    Raises:
        KitError: a file is missing or unreadable, the kit is for another role, others may read
            the private key, the key or the CA does not belong to the certificate, or the
            certificate is expired or not yet valid.
    """
    folder = Path(folder).expanduser().absolute()
    description = load_description(folder)
    identity = description.identity
    if role is not None:
        _check_role(folder, identity, (role,) if isinstance(role, Role) else tuple(role))
    ca_path, certificate_path = folder / CA_FILE, folder / CERTIFICATE_FILE
    key_path = folder / PRIVATE_KEY_FILE
    ca = _parse_certificate(_read(ca_path), str(ca_path))
    certificate = _parse_certificate(_read(certificate_path), str(certificate_path))
    if (held := _identity(certificate)) != identity:
        raise KitError(
            f"{certificate_path}: the certificate is that of {_describe(held)}, but "
            f"{DESCRIPTION_FILE} says {_describe(identity)}. The files of two kits were mixed; "
            "ask the federation's administrator for this kit again."
        )
    _check_issuer(certificate_path, certificate, ca)
    _check_dates(ca_path, ca)
    _check_dates(certificate_path, certificate)
    _check_key(key_path, certificate)
    return StartupKit(
        folder=folder,
        federation=description.federation,
        identity=identity,
        servers=description.servers,
        ca=ca_path,
        certificate=certificate_path,
        private_key=key_path,
    )


def load_description(folder: Path) -> KitDescription:
    """Return what a kit's `kit.json` says, without looking at its certificate.

    Raises:
        KitError: the folder or the file is missing, or the file is not a kit's description.
    """
    if not folder.is_dir():
        raise KitError(
            f"{folder}: there is no such folder. Give the folder that holds {DESCRIPTION_FILE}, "
            "as `prefect-federated provision` made it."
        )
    path = folder / DESCRIPTION_FILE
    try:
        return KitDescription.model_validate_json(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise KitError(
            f"{path}: {where}: {first['msg']}. This version of prefect-federated reads format 1; "
            "restore the file from the kit that the federation's administrator made."
        ) from error


def is_ip_address(host: str) -> bool:
    """Return whether `host` is an IPv4 or IPv6 address rather than a DNS name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise KitError(
            f"{path}: the kit lacks this file. Copy the whole folder again, or ask the "
            "federation's administrator for the kit."
        ) from error
    except OSError as error:
        raise KitError(
            f"{path}: cannot be read ({error.strerror}). Run as the user who owns the kit."
        ) from error


def _parse_certificate(content: bytes, what: str) -> x509.Certificate:
    try:
        if b"-----BEGIN" in content:
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except ValueError as error:
        raise KitError(
            f"{what}: {len(content)} bytes that are not an X.509 certificate in PEM or DER. "
            "Restore it from the kit that the federation's administrator made."
        ) from error


def _identity(certificate: x509.Certificate) -> Identity:
    name = _subject_part(certificate, NameOID.COMMON_NAME, "name (CN)")
    organisation = _subject_part(certificate, NameOID.ORGANIZATION_NAME, "organisation (O)")
    role = _subject_part(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME, "role (OU)")
    if role not in list(Role):
        raise KitError(
            f"the certificate of {name!r} has the role {role!r}, which is none of "
            f"{', '.join(Role)}. Was it made by `prefect-federated provision`?"
        )
    return Identity(name, organisation, Role(role))


def _subject_part(certificate: x509.Certificate, oid: x509.ObjectIdentifier, what: str) -> str:
    values = [str(part.value) for part in certificate.subject.get_attributes_for_oid(oid)]
    if len(values) != 1 or not values[0]:
        subject = certificate.subject.rfc4514_string() or "empty"
        raise KitError(
            f"the certificate says {len(values)} times its {what}, once is expected (its subject "
            f"is {subject}). Was it made by `prefect-federated provision`?"
        )
    return values[0]


def _describe(identity: Identity) -> str:
    return f"{identity.role} {identity.name!r} of {identity.organisation!r}"


def _check_role(folder: Path, identity: Identity, wanted: tuple[Role, ...]) -> None:
    if identity.role not in wanted:
        raise KitError(
            f"{folder}: this is the kit of {identity.role} {identity.name!r}; the command needs "
            f"the kit of a {' or '.join(wanted)}. This kit is for "
            f"`{identity.role.start_command} --kit {folder}`."
        )


def _check_issuer(path: Path, certificate: x509.Certificate, ca: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise KitError(
            f"{path}: the certificate was not signed by the CA in {CA_FILE} "
            f"({ca.subject.rfc4514_string()}). The files of two federations were mixed; ask the "
            "federation's administrator for this kit again."
        ) from error


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise KitError(
            f"{path}: the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC, and this "
            f"machine's clock says {now:%Y-%m-%d %H:%M} UTC. Set the clock."
        )
    if now > end:
        raise KitError(
            f"{path}: the certificate expired at {end:%Y-%m-%d %H:%M} UTC; now it is "
            f"{now:%Y-%m-%d %H:%M} UTC. Ask the federation's administrator for a new kit."
        )


def _check_key(path: Path, certificate: x509.Certificate) -> None:
    content = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KitError(
            f"{path}: has mode {mode:04o}, so other users of this machine may read or change the "
            f"private key. Run `chmod 600 {path}`."
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise KitError(
            f"{path}: is not an unencrypted private key in PEM. Restore it from the kit that the "
            "federation's administrator made."
        ) from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise KitError(
            f"{path}: the private key does not belong to {CERTIFICATE_FILE}. The files of two "
            "kits were mixed; ask the federation's administrator for this kit again."
        )
