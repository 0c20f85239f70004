"""Startup kits: what loading refuses, and real TLS handshakes between kits."""

import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from prefect_federated.errors import KitError
from prefect_federated.kits import (
    Identity,
    Role,
    ServerAddress,
    StartupKit,
    identity_of,
    load_kit,
)
from prefect_federated.provisioning.certificates import CertificateAuthority
from prefect_federated.provisioning.kit_folder import write_kit

SERVERS = (
    ServerAddress("server-1", "127.0.0.1", 8443),
    ServerAddress("server-2", "localhost", 8444),
)
KitMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create("heart", days=30)


@pytest.fixture
def make_kit(tmp_path: Path, ca: CertificateAuthority) -> KitMaker:
    def make(
        name: str,
        role: Role,
        *,
        signer: CertificateAuthority = ca,
        days: int = 10,
        now: datetime | None = None,
    ) -> Path:
        folder = tmp_path / name
        who = Identity(name, "City Hospital", role)
        write_kit(folder, signer, "heart", who, SERVERS, days=days, now=now)
        return folder

    return make


class HandshakeRefused(Exception):
    """What each side of a failed handshake said."""


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, server_name: str = "api.heart"
) -> tuple[Identity, str | None]:
    """Return who the server saw and the TLS version, after a byte has come through."""
    seen: list[Identity] = []
    refused: list[str] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                with server.wrap_socket(connection, server_side=True) as tls:
                    seen.append(identity_of(tls.getpeercert(binary_form=True) or b""))
                    tls.sendall(b"welcome")
            except OSError as error:
                refused.append(f"the server said {error}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        welcome, version = b"", None
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=server_name) as tls,
            ):
                welcome, version = tls.recv(100), tls.version()
        except OSError as error:
            refused.append(f"the client said {error}")
        finally:
            thread.join(timeout=10)
    if welcome != b"welcome":
        raise HandshakeRefused("; ".join(refused))
    return seen[0], version


@pytest.mark.parametrize("role", list(Role))
def test_every_role_is_let_in_and_known_by_its_certificate(make_kit: KitMaker, role: Role) -> None:
    server = load_kit(make_kit("server-1", Role.SERVER))
    somebody = "server-2" if role is Role.SERVER else "somebody"
    participant = load_kit(make_kit(somebody, role))
    for name in (server.api_name, server.job_name("fedavg-1"), "127.0.0.1"):
        identity, version = shake_hands(server.server_context(), participant.client_context(), name)
        assert identity == Identity(somebody, "City Hospital", role)
        assert version == "TLSv1.3"


def test_a_client_of_a_foreign_ca_is_refused(make_kit: KitMaker) -> None:
    foreign = CertificateAuthority.create("heart", days=30)  # the same name, another key
    server = load_kit(make_kit("server-1", Role.SERVER))
    outsider = load_kit(make_kit("outsider", Role.SITE, signer=foreign))
    trusting = outsider.client_context()
    trusting.load_verify_locations(server.ca)
    with pytest.raises(HandshakeRefused, match=r"the server said .*certificate verify failed"):
        shake_hands(server.server_context(), trusting)


def test_a_server_of_a_foreign_ca_is_refused(make_kit: KitMaker) -> None:
    foreign = CertificateAuthority.create("heart", days=30)
    impostor = load_kit(make_kit("server-1", Role.SERVER, signer=foreign))
    site = load_kit(make_kit("site-1", Role.SITE))
    trusting = impostor.server_context()
    trusting.load_verify_locations(site.ca)
    with pytest.raises(HandshakeRefused, match=r"the client said .*certificate verify failed"):
        shake_hands(trusting, site.client_context())


def test_a_client_without_certificate_is_refused(make_kit: KitMaker) -> None:
    server = load_kit(make_kit("server-1", Role.SERVER))
    anonymous = ssl.create_default_context(cafile=server.ca)
    with pytest.raises(
        HandshakeRefused, match=r"the server said .*PEER_DID_NOT_RETURN_A_CERTIFICATE"
    ):
        shake_hands(server.server_context(), anonymous)


def test_a_client_that_speaks_only_tls_1_2_is_refused(make_kit: KitMaker) -> None:
    server = load_kit(make_kit("server-1", Role.SERVER))
    old = load_kit(make_kit("site-1", Role.SITE)).client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(HandshakeRefused, match=r"the server said .*UNSUPPORTED_PROTOCOL"):
        shake_hands(server.server_context(), old)


@pytest.mark.parametrize("role", [Role.SITE, Role.PROJECT_ADMIN])
def test_nobody_but_a_server_can_pose_as_the_server(make_kit: KitMaker, role: Role) -> None:
    posing = load_kit(make_kit("poser", role))
    site = load_kit(make_kit("site-1", Role.SITE))
    client = site.client_context()
    client.check_hostname = False  # even where the name would not tell
    with pytest.raises(HandshakeRefused, match=r"the client said .*unsuitable certificate purpose"):
        shake_hands(posing.server_context(), client)
    with pytest.raises(HandshakeRefused, match=r"the client said .*unsuitable certificate purpose"):
        shake_hands(posing.server_context(), site.client_context(), "poser")


def test_a_server_answers_for_no_other_name(make_kit: KitMaker) -> None:
    server = load_kit(make_kit("server-1", Role.SERVER))
    site = load_kit(make_kit("site-1", Role.SITE))
    for name in ("api.lung", "server-1", "a.b.jobs.heart", "127.0.0.2"):
        with pytest.raises(HandshakeRefused, match=r"the client said .*mismatch"):
            shake_hands(server.server_context(), site.client_context(), name)


@pytest.mark.parametrize(("name", "role"), [("server-1", Role.SERVER), ("site-1", Role.SITE)])
def test_an_expired_certificate_is_refused_by_the_other_side(
    make_kit: KitMaker, name: str, role: Role
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=9)
    folder = make_kit(name, role, days=5, now=long_ago)
    expired = StartupKit(
        folder,
        "heart",
        Identity(name, "City Hospital", role),
        SERVERS,
        folder / "ca.crt",
        folder / "participant.crt",
        folder / "participant.key",
    )
    if role is Role.SERVER:
        server, client = expired, load_kit(make_kit("site-1", Role.SITE))
    else:
        server, client = load_kit(make_kit("server-1", Role.SERVER)), expired
    with pytest.raises(HandshakeRefused, match=r"certificate verify failed: .* has expired"):
        shake_hands(server.server_context(), client.client_context())


def test_an_expired_kit_says_since_when(make_kit: KitMaker) -> None:
    folder = make_kit("site-1", Role.SITE, days=5, now=datetime.now(UTC) - timedelta(days=9))
    with pytest.raises(KitError, match=r"participant.crt: the certificate expired at \d{4}-"):
        load_kit(folder)


def test_a_kit_from_the_future_says_to_set_the_clock(make_kit: KitMaker) -> None:
    folder = make_kit("site-1", Role.SITE, days=5, now=datetime.now(UTC) + timedelta(days=2))
    with pytest.raises(KitError, match=r"is not valid before .* Set the clock"):
        load_kit(folder)


@pytest.mark.parametrize("file", ["kit.json", "ca.crt", "participant.crt", "participant.key"])
def test_a_missing_file_is_named(make_kit: KitMaker, file: str) -> None:
    folder = make_kit("site-1", Role.SITE)
    (folder / file).unlink()
    with pytest.raises(KitError, match=f"{file}: the kit lacks this file"):
        load_kit(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="absent: there is no such folder"):
        load_kit(tmp_path / "absent")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_private_key_that_others_can_read_is_refused(make_kit: KitMaker, mode: int) -> None:
    folder = make_kit("site-1", Role.SITE)
    key = folder / "participant.key"
    key.chmod(mode)
    with pytest.raises(KitError, match=f"has mode {mode:04o}.*chmod 600"):
        load_kit(folder)
    key.chmod(0o400)
    load_kit(folder)


def test_a_kit_of_another_role_is_refused_with_what_it_is_for(make_kit: KitMaker) -> None:
    folder = make_kit("site-1", Role.SITE)
    with pytest.raises(KitError) as raised:
        load_kit(folder, role=Role.SERVER)
    assert "this is the kit of site 'site-1'" in str(raised.value)
    assert "needs the kit of a server" in str(raised.value)
    assert f"`prefect-federated site start --kit {folder}`" in str(raised.value)
    with pytest.raises(KitError, match="needs the kit of a lead or member"):
        load_kit(folder, role=(Role.LEAD, Role.MEMBER))
    assert load_kit(folder, role=Role.SITE) == load_kit(str(folder), role={Role.SITE, Role.LEAD})


def test_a_key_or_certificate_of_another_kit_is_noticed(make_kit: KitMaker) -> None:
    folder, other = make_kit("site-1", Role.SITE), make_kit("site-2", Role.SITE)
    shutil.copy(other / "participant.key", folder / "participant.key")
    with pytest.raises(KitError, match=r"the private key does not belong to participant.crt"):
        load_kit(folder)
    shutil.copy(other / "participant.crt", folder / "participant.crt")
    with pytest.raises(KitError, match=r"is that of site 'site-2'.*kit.json says site 'site-1'"):
        load_kit(folder)


def test_a_ca_of_another_federation_is_noticed(make_kit: KitMaker) -> None:
    foreign = CertificateAuthority.create("heart", days=30)
    folder, other = make_kit("site-1", Role.SITE), make_kit("site-2", Role.SITE, signer=foreign)
    shutil.copy(other / "ca.crt", folder / "ca.crt")
    with pytest.raises(KitError, match=r"was not signed by the CA in ca\.crt"):
        load_kit(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("kit.json", "kit.json: the file: Invalid JSON"),
        ("ca.crt", "ca.crt: 7 bytes that are not an X.509 certificate"),
        ("participant.crt", "participant.crt: 7 bytes that are not an X.509 certificate"),
        ("participant.key", "is not an unencrypted private key in PEM"),
    ],
)
def test_a_damaged_file_is_named(make_kit: KitMaker, file: str, message: str) -> None:
    folder = make_kit("site-1", Role.SITE)
    (folder / file).write_bytes(b"garbage")
    with pytest.raises(KitError, match=message):
        load_kit(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format: .*reads format 1"),
        ("role", "boss", "role: "),
        ("servers", [], "servers: "),
        ("servers", [{"name": "a", "host": "b"}], r"servers\.0\.port: "),
    ],
)
def test_a_wrong_description_is_told_which_part(
    make_kit: KitMaker, key: str, value: object, message: str
) -> None:
    path = make_kit("site-1", Role.SITE) / "kit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(KitError, match=message):
        load_kit(path.parent)


def test_a_kit_whose_files_went_away_says_so_when_it_is_used(make_kit: KitMaker) -> None:
    kit = load_kit(make_kit("site-1", Role.SITE))
    kit.private_key.unlink()
    with pytest.raises(KitError, match="cannot be loaded"):
        kit.client_context()


def test_only_a_server_has_an_address_to_listen_on(make_kit: KitMaker) -> None:
    assert load_kit(make_kit("server-1", Role.SERVER)).own_address == SERVERS[0]
    with pytest.raises(KitError, match="has no address to listen on"):
        _ = load_kit(make_kit("site-1", Role.SITE)).own_address


def test_names_and_addresses_read_as_people_write_them(make_kit: KitMaker) -> None:
    kit = load_kit(make_kit("site-1", Role.SITE))
    assert (kit.api_name, kit.job_name("a1")) == ("api.heart", "a1.jobs.heart")
    assert str(ServerAddress("s", "2001:db8::7", 443)) == "[2001:db8::7]:443"
    assert str(ServerAddress("s", "a.org", 443)) == "a.org:443"


def test_the_identity_is_read_from_pem_and_der(make_kit: KitMaker) -> None:
    pem = (make_kit("site-1", Role.SITE) / "participant.crt").read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    expected = Identity("site-1", "City Hospital", Role.SITE)
    assert identity_of(pem) == identity_of(der) == expected


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ({}, r"0 times its name \(CN\).*its subject is empty"),
        ({NameOID.COMMON_NAME: "a"}, r"0 times its organisation \(O\)"),
        ({NameOID.COMMON_NAME: "a", NameOID.ORGANIZATION_NAME: "b"}, r"0 times its role \(OU\)"),
        (
            {
                NameOID.COMMON_NAME: "a",
                NameOID.ORGANIZATION_NAME: "b",
                NameOID.ORGANIZATIONAL_UNIT_NAME: "boss",
            },
            "the role 'boss', which is none of server, site",
        ),
    ],
)
def test_a_certificate_that_does_not_say_who_it_is_for_is_refused(
    subject: dict[x509.ObjectIdentifier, str], message: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid, text) for oid, text in subject.items()])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    with pytest.raises(KitError, match=message):
        identity_of(certificate.public_bytes(Encoding.PEM))
    with pytest.raises(KitError, match=r"3 bytes that are not an X.509 certificate"):
        identity_of(b"abc")
