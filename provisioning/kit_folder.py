"""Writing a participant's startup kit: all files at once, or none.

A kit holds a private key, so each file is made with its final mode and the folder appears under
its name only when it is whole.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from prefect_federated.kits import (
    CA_FILE,
    CERTIFICATE_FILE,
    DESCRIPTION_FILE,
    PRIVATE_KEY_FILE,
    Identity,
    KitDescription,
    Role,
    ServerAddress,
)
from prefect_federated.provisioning.certificates import (
    CertificateAuthority,
    browser_bundle,
    private_key_pem,
)

BROWSER_FILE = "browser.p12"
BROWSER_PASSWORD_FILE = "browser-password.txt"  # noqa: S105 - a file name
README_FILE = "README.txt"
_PUBLIC_FILES = (DESCRIPTION_FILE, CA_FILE, CERTIFICATE_FILE, README_FILE)


def write_kit(
    folder: Path,
    ca: CertificateAuthority,
    federation: str,
    identity: Identity,
    servers: tuple[ServerAddress, ...],
    *,
    days: int,
    now: datetime | None = None,
) -> None:
    """Make a key and a certificate for `identity` and write its startup kit to `folder`.

    Args:
        folder: Where the kit goes; must not exist, its parent must.
        ca: Signs the certificate.
        federation: The federation's name.
        identity: Whose kit it is.
        servers: Where the federation's servers are reached; a server's own address among them.
        days: How long the certificate is valid.
        now: Start of the validity; the current time if None.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    own_hosts = tuple(server.host for server in servers if server.name == identity.name)
    hosts: tuple[str, ...] = ()
    if identity.role is Role.SERVER:
        hosts = (f"api.{federation}", f"*.jobs.{federation}", *own_hosts)
    certificate = ca.issue(identity, key.public_key(), days=days, hosts=hosts, now=now)
    description = KitDescription(
        federation=federation,
        name=identity.name,
        organisation=identity.organisation,
        role=identity.role,
        servers=servers,
    )
    files = {
        DESCRIPTION_FILE: description.model_dump_json(indent=2).encode() + b"\n",
        CA_FILE: ca.certificate.public_bytes(Encoding.PEM),
        CERTIFICATE_FILE: certificate.public_bytes(Encoding.PEM),
        PRIVATE_KEY_FILE: private_key_pem(key),
        README_FILE: _readme(description, certificate.not_valid_after_utc).encode(),
    }
    if identity.role.is_user:
        password = secrets.token_urlsafe(18).encode()
        title = f"{identity.name} ({federation})"
        files[BROWSER_FILE] = browser_bundle(title, key, certificate, ca.certificate, password)
        files[BROWSER_PASSWORD_FILE] = password + b"\n"
    write_folder(folder, files, public=_PUBLIC_FILES)


def write_folder(folder: Path, files: Mapping[str, bytes], *, public: tuple[str, ...]) -> None:
    """Write a new folder, mode 0700, with `files`, so that it is there whole or not at all.

    Args:
        folder: Must not exist; its parent must.
        files: File name -> content.
        public: The files that get mode 0644; all others get 0600.
    """
    temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(folder.name), dir=folder.parent))
    try:
        for name, content in files.items():
            mode = 0o644 if name in public else 0o600
            descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        temporary.rename(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name, too, survives a power failure
    finally:
        os.close(descriptor)


def temporary_prefix(name: str) -> str:
    """Return how the name of a folder that is still being written begins."""
    return f".{name}.unfinished-"


def remove_unfinished(parent: Path) -> None:
    """Delete what an earlier, interrupted run left half written in `parent`."""
    for leftover in parent.glob(".*.unfinished-*"):
        shutil.rmtree(leftover)


def _readme(kit: KitDescription, expires: datetime) -> str:
    addresses = "\n".join(f"    {server.name}: https://{server}" for server in kit.servers)
    return f"""\
Startup kit of {kit.role} {kit.name!r} ({kit.organisation}) in the federation {kit.federation!r}

{_how_to_start(kit)}
The certificate is valid until {expires:%Y-%m-%d}. The federation's servers:

{addresses}

Whoever holds {PRIVATE_KEY_FILE} is {kit.name!r} to the federation: keep this folder on the machine
that uses it, readable by the one account that runs the command, and out of mail and git.
If it may have been copied, tell the federation's administrator at once.

    {DESCRIPTION_FILE:<21} federation, name, organisation, role, addresses of the servers
    {CA_FILE:<21} certificate of the federation's CA: whom to trust
    {CERTIFICATE_FILE:<21} this participant's certificate
    {PRIVATE_KEY_FILE:<21} its private key (mode 0600, keep it so)
{_browser_files(kit)}"""


def _how_to_start(kit: KitDescription) -> str:
    start = f"    {kit.role.start_command} --kit /path/to/this/folder"
    if kit.role is Role.SERVER:
        port = next(server.port for server in kit.servers if server.name == kit.name)
        return f"""\
Copy this folder to the server and start it with

{start}

It listens on port {port}, the only port that must be open to the sites and users.
"""
    if kit.role is Role.SITE:
        return f"""\
Copy this folder to the machine at the site that may read the data, and start the site with

{start}

It opens no port to the outside; it connects to the servers below.
"""
    return f"""\
To use the ordinary `prefect` command against the federation:

{start} -- prefect work-pool ls

To open the Prefect UI in a browser, import {BROWSER_FILE} (its password is in
{BROWSER_PASSWORD_FILE}) as your certificate and {CA_FILE} as an authority that may identify
websites, then open a server's address below. In Firefox: Settings, Privacy & Security,
Certificates, View Certificates. Delete {BROWSER_PASSWORD_FILE} after that.
"""


def _browser_files(kit: KitDescription) -> str:
    if not kit.role.is_user:
        return ""
    return f"""\
    {BROWSER_FILE:<21} certificate and private key for the browser
    {BROWSER_PASSWORD_FILE:<21} the password of {BROWSER_FILE}
"""
