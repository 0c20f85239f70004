"""The federation's own certificate authority: ECDSA P-256, TLS certificates with identities.

All cryptography is the `cryptography` package's. Nothing here touches a file.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prefect_federated.errors import ConfigurationError
from prefect_federated.kits import Identity, Role, is_ip_address

_CLOCK_SKEW = timedelta(hours=1)  # so that a kit works at once where the clock runs behind


@dataclass(frozen=True)
class CertificateAuthority:
    """A CA's certificate and private key: what signs participants' certificates."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(
        cls, federation: str, *, days: int, now: datetime | None = None
    ) -> "CertificateAuthority":
        """Return a new CA for `federation`, self-signed, that may sign no further CA.

        Args:
            federation: The federation's name; it becomes the CA's organisation.
            days: How long the CA's certificate is valid.
            now: Start of the validity; the current time if None.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} federation CA"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            ]
        )
        begin = now or datetime.now(UTC)
        certificate = (
            _builder(name, name, key.public_key(), key.public_key())
            .not_valid_before(begin - _CLOCK_SKEW)
            .not_valid_after(begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .sign(key, SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(
        cls, certificate: x509.Certificate, encrypted_key: bytes, passphrase: bytes
    ) -> "CertificateAuthority":
        """Return a CA whose private key (PEM, PKCS#8) is decrypted with `passphrase`.

        Raises:
            ConfigurationError: the passphrase is wrong, or the key is not this certificate's.
        """
        try:
            key = load_pem_private_key(encrypted_key, passphrase)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                "the CA's private key cannot be decrypted: the passphrase is wrong, or the file "
                "is damaged. Give the passphrase that was set when the CA was made."
            ) from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != certificate.public_key()
        ):
            raise ConfigurationError(
                "the CA's private key does not belong to the CA's certificate. Bring back the "
                "key that was made together with it."
            )
        return cls(certificate, key)

    def issue(
        self,
        identity: Identity,
        public_key: ec.EllipticCurvePublicKey,
        *,
        days: int,
        hosts: tuple[str, ...] = (),
        now: datetime | None = None,
    ) -> x509.Certificate:
        """Return a certificate for a participant; only a server's may be used to listen.

        Args:
            identity: Name, organisation and role: the certificate's subject.
            public_key: The participant's key.
            days: How long it is valid, cut off at the end of the CA's own certificate.
            hosts: DNS names, `*.` wildcards and IP addresses that a server answers for; none for
                other participants.
            now: Start of the validity; the current time if None.
        """
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.organisation),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.value),
            ]
        )
        begin = now or datetime.now(UTC)
        end = min(begin + timedelta(days=days), self.certificate.not_valid_after_utc)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.role is Role.SERVER:
            purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        ca_key = self.private_key.public_key()
        builder = (
            _builder(subject, self.certificate.subject, public_key, ca_key)
            .not_valid_before(begin - _CLOCK_SKEW)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.private_key, SHA256())

    def encrypted_key(self, passphrase: bytes) -> bytes:
        """Return the CA's private key, PEM, PKCS#8, encrypted with `passphrase`."""
        return private_key_pem(self.private_key, BestAvailableEncryption(passphrase))


def private_key_pem(
    key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption | None = None
) -> bytes:
    """Return a private key as PEM, PKCS#8; not encrypted if `encryption` is None."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def browser_bundle(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    ca: x509.Certificate,
    password: bytes,
) -> bytes:
    """Return a PKCS#12 file with key, certificate and CA, as browsers import it."""
    encryption = BestAvailableEncryption(password)
    return pkcs12.serialize_key_and_certificates(name.encode(), key, certificate, [ca], encryption)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    if is_ip_address(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)
