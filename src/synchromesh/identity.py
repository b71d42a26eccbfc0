"""The signed credential of a hop: which service calls, for which principal, until when.

A credential is `<payload>.<mac>`: base64url JSON and HMAC-SHA256 under the system's key. It is made
once per service and principal and used until half its life is over, and verified once per token, so
that neither signing nor verifying is on the path of a warm call.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from synchromesh.errors import ConfigError, Unauthenticated

KEY_BYTES_MIN = 32
LIFETIME_S = 300.0
# Clocks of two machines may differ by this much before a fresh credential is refused.
SKEW_S = 5.0
CACHE_MAX = 1024


class Credential(msgspec.Struct, frozen=True):
    """Who calls: the calling service, the principal it acts for ("" for itself), and until when."""

    service: str
    principal: str
    expires_us: int


class Signer:
    """Signs and verifies the credentials of one system.

    Example:
        >>> signer = Signer(b"0" * 32)
        >>> token = signer.token("orders", "alice", now_us=0)
        >>> signer.verify(token, now_us=1).principal
        'alice'
    """

    def __init__(self, key: bytes, *, lifetime_s: float = LIFETIME_S) -> None:
        if len(key) < KEY_BYTES_MIN:
            raise ConfigError(
                f"the system's key has {len(key)} bytes, at least {KEY_BYTES_MIN} are needed; "
                "delete the key file to have a new one made"
            )
        self._key = key
        self._lifetime_us = int(lifetime_s * 1e6)
        self._made: dict[tuple[str, str], tuple[str, int]] = {}
        self._verified: dict[str, Credential] = {}

    def token(self, service: str, principal: str = "", *, now_us: int) -> str:
        """Return a credential that is valid for at least half a lifetime from now."""
        made = self._made.get((service, principal))
        if made is not None and now_us < made[1]:
            return made[0]
        payload = msgspec.json.encode(Credential(service, principal, now_us + self._lifetime_us))
        body = base64.urlsafe_b64encode(payload).decode()
        token = f"{body}.{self._mac(body)}"
        if len(self._made) >= CACHE_MAX:
            self._made.clear()
        self._made[(service, principal)] = (token, now_us + self._lifetime_us // 2)
        return token

    def verify(self, token: str, *, now_us: int) -> Credential:
        """Return what a token says.

        Raises:
            Unauthenticated: it is missing, malformed, signed with another key, or expired.
        """
        credential = self._verified.get(token)
        if credential is None:
            credential = self._read(token)
            if len(self._verified) >= CACHE_MAX:
                self._verified.clear()
            self._verified[token] = credential
        if now_us > credential.expires_us + int(SKEW_S * 1e6):
            raise Unauthenticated("the credential of this call has expired; make a new one")
        return credential

    def _read(self, token: str) -> Credential:
        if not token:
            raise Unauthenticated("the call carries no credential; every hop has to be signed")
        body, _, mac = token.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(body).encode()):
            raise Unauthenticated("the credential of this call was not signed by this system")
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(body), type=Credential)
        except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
            raise Unauthenticated("the credential of this call cannot be read") from error

    def _mac(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return f"<Signer {len(self._verified)} verified>"
