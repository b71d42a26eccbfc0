"""What the certificate of a client says, once its chain was verified.

Sources: RFC 5280, sections 4.1.2.6 (subject) and 4.2.1.6 (subjectAltName).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# Where a certificate can say whom it is for, and as what `ssl` tells it.
NAME_KINDS: Final = {"uri": "URI", "dns": "DNS", "email": "email", "cn": "commonName"}


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a certificate says that an authority of `client_ca` has issued to a client.

    Attributes:
        names: whom it is for, by where it says so: "uri", "dns" and "email" are of its
            subjectAltName, "cn" is the common name of its subject.
        expires_s: when it ends, in seconds since 1970.

    Example:
        >>> shown = ClientCertificate({"uri": ("spiffe://partners/acme",)}, 1.8e9)
        >>> shown.named("uri"), shown.named("cn")
        (('spiffe://partners/acme',), ())
    """

    names: Mapping[str, tuple[str, ...]]
    expires_s: float

    def named(self, kind: str) -> tuple[str, ...]:
        """Return the names of one kind, each once, in their order."""
        return self.names.get(kind, ())


def certificate_of(tls: ssl.SSLObject) -> ClientCertificate | None:
    """Return what the client has proved itself by; None where it has shown nothing."""
    try:
        told: dict[str, Any] | None = tls.getpeercert()
    except UnicodeDecodeError:
        # It is valid, and names nobody that could be read.
        return ClientCertificate({}, 0.0)
    if not told:
        return None
    subject = [pair for part in told.get("subject", ()) for pair in part]
    names = {
        kind: tuple(
            dict.fromkeys(
                value
                for name, value in (subject if kind == "cn" else told.get("subjectAltName", ()))
                if name == known
            )
        )
        for kind, known in NAME_KINDS.items()
    }
    return ClientCertificate(names, float(ssl.cert_time_to_seconds(told["notAfter"])))
