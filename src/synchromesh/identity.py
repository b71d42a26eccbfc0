"""The signed credential of a hop: which service calls which, for which principal, until when.

A credential is `<payload>.<mac>`: base64url JSON and HMAC-SHA256 under the system's key. It is for
one audience, the service that is called: whoever receives it can call nobody else with it. It is
made once per edge and principal and used until half its life is over, and verified once per token,
so that neither signing nor verifying is on the path of a warm call.

An upstream that is no service of the system is told a principal by a token that any library of JWT
verifies, under a key of its own: with that it can check what it is told, and sign nothing for
anybody else.

Source: RFC 7519, section 4.1.3 ("aud"); RFC 8693, section 4.2 ("scope").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.errors import ConfigError, Forbidden, Unauthenticated
from synchromesh.priority import Priority

KEY_BYTES_MIN = 32
LIFETIME_S = 300.0
# A token that tells a principal is shown to others; it is made anew when half of this is over.
PRINCIPAL_LIFETIME_S = 60
ISSUER = "synchromesh"
# Clocks of two machines may differ by this much before a fresh credential is refused.
SKEW_S = 5.0
CACHE_MAX = 4096
_MAC_BYTES = 64  # of what is sealed, as text
# The audience that the registry is, and no service can be: a service's name has no such letter.
REGISTRY = "@registry"

# What a principal may take as JSON: it travels with every call that is made for it.
PRINCIPAL_BYTES_MAX = 4096

# What is told of a principal besides its name: by its issuer, and declared where it is known by.
Claim: TypeAlias = str | int | bool | tuple[str, ...]

# What one scope is written in: RFC 6749, section 3.3; several are told with a blank between them.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
# What every reader of JSON takes whole.
_INT_END = 2**53

_log = logging.getLogger("synchromesh.identity")


class Principal(msgspec.Struct, frozen=True, cache_hash=True, omit_defaults=True):
    """Says on whose behalf a call is made, and what they may do; `NOBODY` is false.

    Whoever knew the credential has made it, and every hop carries it signed: what it says is as
    sure in the last service of a request as it was at the gateway.

    Attributes:
        name: who it is, in all of the system; "" for nobody.
        scopes: what they may do.
        kind: of the credential: "key", "token", "certificate", or that of an authenticator of your
            own; "" where no credential was looked at.
        issuer: who says so: the issuer of a token; "" where that is the system itself.
        claims: what else is told of them, by name, where the authenticator was asked for it.

    Example:
        >>> ada = Principal("jwt:ada", frozenset({"orders:write"}), "token", claims=(("site", 7),))
        >>> ada.may("orders:write"), ada.may("orders:read"), ada.claim("site"), ada.claim("age")
        (True, False, 7, None)
    """

    name: str = ""
    scopes: frozenset[str] = frozenset()
    kind: str = ""
    issuer: str = ""
    claims: tuple[tuple[str, Claim], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.name)

    def may(self, *scopes: str) -> bool:
        """Return whether it has all of these scopes."""
        return self.scopes.issuperset(scopes)

    def require(self, *scopes: str) -> None:
        """Refuse where it lacks one of these scopes; a call for nobody has none.

        Raises:
            Forbidden: one is lacking; the message names it.
        """
        for scope in scopes:
            if scope not in self.scopes:
                raise Forbidden(f"this needs the scope {scope!r}, which the principal lacks")

    def claim(self, name: str) -> Claim | None:
        """Return what is told of it under a name; None where nothing is."""
        return dict(self.claims).get(name)

    def is_short(self) -> bool:
        """Return whether it is short enough to travel."""
        return len(msgspec.json.encode(self)) <= PRINCIPAL_BYTES_MAX


NOBODY: Final = Principal()


def is_one_scope(text: object) -> bool:
    """Return whether a text is one scope, however it is told: RFC 6749, section 3.3.

    Example:
        >>> is_one_scope("orders:write"), is_one_scope("Sales admin"), is_one_scope("")
        (True, False, False)
    """
    return isinstance(text, str) and _SCOPE.fullmatch(text) is not None


def checked(principal: Principal) -> Principal:
    """Return a principal of the types that are declared, as one that travels has to be.

    Not every user has a type checker: scopes may come as a set that can be changed.

    Raises:
        ValueError: it cannot travel; the message says why, and nothing of what is in it.
    """
    try:
        found = msgspec.convert(msgspec.structs.asdict(principal), Principal)
    except msgspec.ValidationError as error:
        raise ValueError(f"it is not of the types that a Principal has: {error}") from error
    for scope in found.scopes:
        if not is_one_scope(scope):
            raise ValueError("a scope is empty, or has a blank, a quote or another such character")
    for name, value in found.claims:
        if isinstance(value, int) and abs(value) >= _INT_END:
            raise ValueError(f"the claim {name[:40]!r} is no number below 2**53")
    try:
        is_short = found.is_short()
    except UnicodeEncodeError as error:
        raise ValueError("a text in it cannot be written as UTF-8") from error
    if not is_short:
        raise ValueError(f"it is longer than {PRINCIPAL_BYTES_MAX} bytes of JSON")
    return found


def principal_text(principal: Principal) -> str:
    """Return a principal as it is kept in a column: a name alone as it is, else as JSON.

    Example:
        >>> principal_text(Principal("ada")), principal_text(Principal("ada", kind="key"))
        ('ada', '{"name":"ada","kind":"key"}')
    """
    if principal == Principal(principal.name) and not principal.name.startswith("{"):
        return principal.name
    return msgspec.json.encode(principal, order="deterministic").decode()


def principal_of(text: str) -> Principal:
    """Return what `principal_text` has written."""
    if text.startswith("{"):
        return msgspec.json.decode(text, type=Principal)
    return Principal(text) if text else NOBODY


class Credential(msgspec.Struct, frozen=True):
    """Who calls: the calling service, the principal it acts for, or nobody, whom, until when.

    Attributes:
        audience: the service that is called, or `REGISTRY`.
        priority: of the calls that it signs, as a number of `Priority`.
    """

    service: str
    principal: Principal
    audience: str
    expires_us: int
    priority: Priority = Priority.INTERACTIVE


class Admits(Protocol):
    """Admits callers that are no process of the system: clients from outside."""

    def admit(self, token: str, *, audience: str, now_us: int) -> Credential:
        """Return what a token of theirs says. Raises Unauthenticated, Forbidden."""
        ...

    @property
    def why_old(self) -> Callable[[], str]:
        """Returns why what is known of them may be old, in words; "" where it is not."""
        ...


class Signer:
    """Signs and verifies the credentials of one system.

    Args:
        key: what it signs with.
        accepted: what others of the system may have signed with, while its key is changed.
        lifetime_s: how long a credential is good.

    Attributes:
        clients: admits clients from outside; None where there are none.

    Example:
        >>> signer = Signer(b"0" * 32)
        >>> token = signer.token("orders", Principal("alice"), audience="billing", now_us=0)
        >>> signer.verify(token, audience="billing", now_us=1).principal.name
        'alice'
    """

    def __init__(self, key: bytes, *accepted: bytes, lifetime_s: float = LIFETIME_S) -> None:
        for each in (key, *accepted):
            if len(each) < KEY_BYTES_MIN:
                raise ConfigError(
                    f"the system's key has {len(each)} bytes, at least {KEY_BYTES_MIN} are needed; "
                    "delete the key file to have a new one made"
                )
        self._key = key
        self._keys = tuple(dict.fromkeys((key, *accepted)))
        self.lifetime_s = lifetime_s
        self._lifetime_us = int(lifetime_s * 1e6)
        self._made: dict[tuple[str, Principal, str, Priority], tuple[str, int]] = {}
        self._verified: dict[str, Credential] = {}
        self._told: dict[tuple[str, frozenset[str], str], tuple[str, int]] = {}
        self.clients: Admits | None = None

    def client_key(self, client_id: str) -> bytes:
        """Return the key by which a client from outside signs; it is of use to nobody else."""
        return self.client_keys(client_id)[0]

    def client_keys(self, client_id: str) -> tuple[bytes, ...]:
        """Return those that a client may sign by: of each key that is accepted."""
        return tuple(_derived(each, f"client:{client_id}").digest() for each in self._keys)

    def principal_key(self, audience: str) -> bytes:
        """Return the key by which an upstream verifies who asks; it is for that upstream alone."""
        return hmac.new(self._key, f"principal:{audience}".encode(), hashlib.sha256).digest()

    def database_passwords(self, role: str) -> tuple[str, ...]:
        """Return the passwords that a role of a database may have: of each key that is accepted.

        The first one is that of the system's own key. Whoever has a key has all of its passwords:
        roles keep services from each other's data by mistake.
        """
        return tuple(_derived(each, f"database:{role}").hexdigest() for each in self._keys)

    def principal_token(
        self, principal: str, scopes: frozenset[str], *, audience: str, now_us: int
    ) -> str:
        """Return a JWT that tells an upstream who asks, by HS256; it is good for 30 to 60 s.

        Raises:
            Forbidden: a scope would be told as several, or as none.

        Example:
            >>> told = Signer(b"0" * 32).principal_token(
            ...     "alice", frozenset({"b", "a"}), audience="legacy", now_us=0
            ... )
            >>> base64.urlsafe_b64decode(told.split(".")[1] + "==")
            b'{"iss":"synchromesh","aud":"legacy","sub":"alice","scope":"a b","iat":0,"exp":60}'
        """
        told = (principal, scopes, audience)
        made = self._told.get(told)
        now_s = now_us // 1_000_000
        if made is not None and made[1] - PRINCIPAL_LIFETIME_S <= now_s < made[1] - 30:
            return made[0]
        if not all(map(is_one_scope, scopes)):
            raise Forbidden(
                "the principal has a scope with a blank, a quote or another such character, which "
                "no upstream can be told; whoever identifies it has to give it another"
            )
        expires_s = now_s + PRINCIPAL_LIFETIME_S
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "sub": principal,
            "scope": " ".join(sorted(scopes)),
            "iat": now_s,
            "exp": expires_s,
        }
        signed = f"{_JWT_HEAD}.{_unpadded(msgspec.json.encode(claims))}"
        mac = hmac.new(self.principal_key(audience), signed.encode(), hashlib.sha256).digest()
        token = f"{signed}.{_unpadded(mac)}"
        if len(self._told) >= CACHE_MAX:
            self._told.clear()
        self._told[told] = (token, expires_s)
        return token

    def token(
        self,
        service: str,
        principal: Principal = NOBODY,
        *,
        audience: str,
        now_us: int,
        priority: Priority = Priority.INTERACTIVE,
    ) -> str:
        """Return a credential for an audience, valid for at least half a lifetime from now."""
        edge = (service, principal, audience, priority)
        made = self._made.get(edge)
        if made is not None and now_us < made[1]:
            return made[0]
        expires_us = now_us + self._lifetime_us
        credential = Credential(service, principal, audience, expires_us, priority)
        body = base64.urlsafe_b64encode(_written(credential)).decode()
        token = f"{body}.{_mac(self._key, body)}"
        if len(self._made) >= CACHE_MAX:
            self._made.clear()
        self._made[edge] = (token, now_us + self._lifetime_us // 2)
        return token

    def verify(self, token: str, *, audience: str, now_us: int) -> Credential:
        """Verify a token for an audience and return its credential.

        Raises:
            Unauthenticated: it is missing, malformed, signed with another key, for another
                audience, or expired.
        """
        credential = self._verified.get(token)
        if credential is None:
            credential = self._read(token)
            if len(self._verified) >= CACHE_MAX:
                self._verified.clear()
            self._verified[token] = credential
        if credential.audience != audience:
            # It was genuine where it was meant for, so somebody there has passed it on.
            _log.warning(
                "refused a credential of %r for %r that was shown to %r; look who received it",
                credential.service,
                credential.audience,
                audience,
            )
            raise Unauthenticated(
                f"the credential of this call is for {credential.audience!r}, and was shown to "
                f"{audience!r}; every hop is signed for the service that it calls"
            )
        late_us = now_us - credential.expires_us
        if late_us > int(SKEW_S * 1e6):
            raise Unauthenticated(
                f"the credential of this call, of {credential.service!r}, expired "
                f"{late_us / 1e6:.0f} s ago by the clock of {audience!r}, which says "
                f"{to_datetime(now_us):%Y-%m-%d %H:%M:%S} UTC. It is good for "
                f"{self.lifetime_s:.0f} s, and clocks may differ by {SKEW_S:g} s: set the clocks "
                "of both hosts, or make a new one"
            )
        return credential

    def why_clients_old(self) -> str:
        """Return why what is known of clients may be old, in words; "" where it is not."""
        return "" if self.clients is None else self.clients.why_old()

    def admit(self, token: str, *, audience: str, now_us: int) -> Credential:
        """Verify a token of a process of the system, or of a client from outside.

        Raises:
            Unauthenticated: as `verify`; or the client's credential has expired or is revoked.
            Forbidden: the client may not call the audience.
        """
        # What we sign has one dot, and a JWT has two.
        if self.clients is not None and token.count(".") == 2:
            return self.clients.admit(token, audience=audience, now_us=now_us)
        return self.verify(token, audience=audience, now_us=now_us)

    def seal(self, data: bytes, *, audience: str) -> bytes:
        """Return data with a mac, which `unseal` verifies for the same audience alone.

        Example:
            >>> signer = Signer(b"0" * 32)
            >>> signer.unseal(signer.seal(b"at home", audience="door"), audience="door")
            b'at home'
        """
        return _sealing_mac(self._key, data, audience) + data

    def unseal(self, sealed: bytes, *, audience: str) -> bytes:
        """Return what was sealed.

        Raises:
            Unauthenticated: it was not sealed by this system, or for another audience.
        """
        mac, data = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        for each in self._keys:
            if hmac.compare_digest(mac, _sealing_mac(each, data, audience)):
                return data
        raise Unauthenticated(f"what is said of {audience!r} was not signed by this system")

    def is_sealed_now(self, sealed: bytes, *, audience: str) -> bool:
        """Return whether data was sealed by the key that signs, and not by one that is accepted."""
        mac, data = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        return hmac.compare_digest(mac, _sealing_mac(self._key, data, audience))

    def mark(self, what: str) -> str:
        """Return what tells this system's own of another's, and nothing of the key."""
        return self.marks(what)[0]

    def marks(self, what: str) -> tuple[str, ...]:
        """Return those that its own may have: of each key that is accepted."""
        return tuple(_derived(each, f"mark:{what}").hexdigest()[:32] for each in self._keys)

    def _read(self, token: str) -> Credential:
        if not token:
            raise Unauthenticated("the call carries no credential; every hop has to be signed")
        body, _, mac = token.partition(".")
        if not any(hmac.compare_digest(mac.encode(), _mac(k, body).encode()) for k in self._keys):
            raise Unauthenticated(
                "the credential of this call was not signed by this system: all of its processes "
                "need one key, and while that is changed both"
            )
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(body), type=Credential)
        except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
            raise Unauthenticated("the credential of this call cannot be read") from error

    def __repr__(self) -> str:
        return f"<Signer {len(self._verified)} verified>"


def _mac(key: bytes, body: str) -> str:
    return hmac.new(key, body.encode(), hashlib.sha256).hexdigest()


def _derived(key: bytes, what: str) -> hmac.HMAC:
    return hmac.new(key, what.encode(), hashlib.sha256)


def _sealing_mac(key: bytes, data: bytes, audience: str) -> bytes:
    said = b"sealed:" + audience.encode() + b"\0" + data
    return hmac.new(key, said, hashlib.sha256).hexdigest().encode()


def _written(credential: Credential) -> bytes:
    # The order of a set differs from process to process.
    return msgspec.json.encode(credential, order="deterministic")


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


_JWT_HEAD = _unpadded(b'{"alg":"HS256","typ":"JWT"}')
