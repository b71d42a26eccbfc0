"""What a gateway under measurement proves itself by, and what clients show it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFETIME_S = 3600


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of its own for loopback (P-256), as files in PEM."""

    pem: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        """Return what a client needs that believes it."""
        return ssl.create_default_context(cafile=str(self.pem))


def certify(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1, and its key, in a folder."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(private, hashes.SHA256())
    )
    made = Certificate(folder / "bench.pem", folder / "bench.key")
    made.pem.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


def token(keys: Path, *, issuer: str, audience: str, scope: str) -> str:
    """Write an issuer's public keys into a file, and return a token that is good for an hour."""
    from joserfc import jwt
    from joserfc.jwk import ECKey

    key = ECKey.generate_key("P-256", {"kid": "bench", "alg": "ES256"})
    keys.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": "bench",
        "scope": scope,
        "exp": int(time.time()) + LIFETIME_S,
    }
    return jwt.encode({"alg": "ES256", "kid": "bench"}, claims, key)
