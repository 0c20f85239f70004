"""The certificates, as OpenSSL and browsers see them."""

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.provisioning.conftest import Administrator

SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def read_certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(administrator: Administrator, name: str, *more: str) -> str:
    command = ["openssl", "verify", "-x509_strict", "-verbose", *more, "-CAfile"]
    files = [administrator.workspace / "ca/ca.crt", administrator.kit(name) / "participant.crt"]
    done = subprocess.run([*command, *files], check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_openssl_verifies_each_chain_for_its_purposes_only(administrator: Administrator) -> None:
    administrator.provision()
    for name in ("server-1", "site-1", "alice"):
        assert verify(administrator, name, "-purpose", "sslclient").endswith(": OK\n")
    assert verify(administrator, "server-1", "-purpose", "sslserver").endswith(": OK\n")
    for name in ("site-1", "alice"):
        assert "purpose" in verify(administrator, name, "-purpose", "sslserver")


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("api.heart", True),
        ("any-job.jobs.heart", True),
        ("api.lung", False),
        ("site-1", False),
        ("localhost", False),
    ],
)
def test_the_server_answers_for_the_logical_names(
    administrator: Administrator, host: str, fits: bool
) -> None:
    administrator.provision()
    said = verify(administrator, "server-1", "-verify_hostname", host)
    assert said.endswith(": OK\n") is fits


def test_the_server_answers_for_its_own_address_only(administrator: Administrator) -> None:
    administrator.edit(
        "sites:",
        '  - {name: server-2, address: "[2001:db8::7]:443", organisation: U}\n'
        "  - {name: server-3, address: fed.example.org:443, organisation: U}\nsites:",
    )
    administrator.provision()
    addresses = {
        "server-1": ("-verify_ip", "127.0.0.1"),
        "server-2": ("-verify_ip", "2001:db8::7"),
        "server-3": ("-verify_hostname", "fed.example.org"),
    }
    for name in addresses:
        for other, check in addresses.items():
            assert verify(administrator, name, *check).endswith(": OK\n") is (name == other)


def test_certificates_say_who_and_what_for(administrator: Administrator) -> None:
    administrator.provision()
    for name, purposes in (
        ("server-1", [SERVER_AUTH, CLIENT_AUTH]),
        ("site-1", [CLIENT_AUTH]),
        ("alice", [CLIENT_AUTH]),
    ):
        certificate = read_certificate(administrator.kit(name) / "participant.crt")
        public_key = certificate.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        assert isinstance(public_key.curve, ec.SECP256R1)
        extensions = certificate.extensions
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == purposes
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert not constraints.value.ca
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.digital_signature
        assert not usage.value.key_cert_sign
    assert certificate.subject.rfc4514_string() == "OU=project_admin,O=University,CN=alice"


def test_the_ca_may_sign_participants_but_no_further_ca(administrator: Administrator) -> None:
    administrator.provision()
    extensions = read_certificate(administrator.workspace / "ca/ca.crt").extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert constraints.critical
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_the_browser_file_opens_with_its_password_and_with_no_other(
    administrator: Administrator,
) -> None:
    administrator.provision()
    folder = administrator.kit("alice")
    content = (folder / "browser.p12").read_bytes()
    password = (folder / "browser-password.txt").read_bytes().rstrip(b"\n")
    assert len(password) >= 20
    bundle = pkcs12.load_pkcs12(content, password)
    assert bundle.key is not None
    assert bundle.cert is not None
    assert bundle.cert.certificate == read_certificate(folder / "participant.crt")
    assert bundle.cert.friendly_name == b"alice (heart)"
    key = load_pem_private_key((folder / "participant.key").read_bytes(), None)
    assert bundle.key.public_key() == key.public_key()
    cas = [ca.certificate for ca in bundle.additional_certs]
    assert cas == [read_certificate(folder / "ca.crt")]
    for wrong in (b"", b"guess", None):
        with pytest.raises(ValueError):
            pkcs12.load_pkcs12(content, wrong)
