"""Makes certificates for tests: authorities, servers and clients."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, in memory and as files."""

    certificate: x509.Certificate
    private: ec.EllipticCurvePrivateKey
    pem: Path
    key: Path


def issue(
    folder: Path,
    name: str,
    *,
    by: Issued | None = None,
    host: str = "127.0.0.1",
    uri: str = "",
    days: float = 30.0,
    password: bytes = b"",
) -> Issued:
    """Write NAME.pem and NAME.key; without `by` it is an authority of its own."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=60))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_names(host, uri)), critical=False)
    )
    # What RFC 5280 asks for, and CPython from 3.13 on.
    for extension, is_critical in _told(private, private if by is None else by.private, by is None):
        builder = builder.add_extension(extension, critical=is_critical)
    certificate = builder.sign(private if by is None else by.private, hashes.SHA256())
    pem, key = folder / f"{name}.pem", folder / f"{name}.key"
    hidden = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    _put(pem, certificate.public_bytes(serialization.Encoding.PEM))
    _put(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden
        ),
    )
    return Issued(certificate, private, pem, key)


def _told(
    own: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, is_ca: bool
) -> list[tuple[x509.ExtensionType, bool]]:
    """Return what a certificate says of its key, of its issuer's, and of what it is for."""
    return [
        (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False),
        (
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca,
                content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, encipher_only=False, decipher_only=False,
            ),
            True,
        ),
    ]  # fmt: skip


def _names(host: str, uri: str) -> list[x509.GeneralName]:
    return [_name(host), x509.UniformResourceIdentifier(uri)] if uri else [_name(host)]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _put(path: Path, data: bytes) -> None:
    """Write a file as a tool would that renews it: whole, and as another file."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.replace(path)
