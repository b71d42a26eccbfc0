"""Clients from outside: scripts, jobs and programs in any language that call by a credential.

A credential is `smc_<id>_<key>`, and its key never travels: for each service that is called the
client signs a JWT of its own (HS256), which says whom it is for and ends within minutes.

    {"alg": "HS256", "kid": <id>}  {"aud": "orders", "exp": <seconds>}

The key follows from that of the system and the id, so that every process of the system verifies it
and none keeps it. What a client may call, until when, and whether that has been taken back is its
grant, in a file of the run directory that is read again within half a second of a change.

Source: RFC 7515; RFC 7519; RFC 7523, section 3.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError, Forbidden, Unauthenticated
from synchromesh.identity import (
    CACHE_MAX,
    LIFETIME_S,
    NOBODY,
    REGISTRY,
    SKEW_S,
    Credential,
    Principal,
    Signer,
)
from synchromesh.priority import Priority
from synchromesh.watched import WatchedFile

PREFIX = "smc_"
# Of a principal that is a client from outside.
KIND = "client"
# A change of the file is seen this soon, by the clock of the calls themselves.
LOOK_US = 500_000
# What a client's own signature may last; a later end is refused.
SIGNED_S = 60.0
MADE_BY = 'synchromesh client add NAME --scope SERVICE --why "..."'

_CREDENTIAL = re.compile(r"smc_([a-z0-9]{4,32})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"[a-z0-9]{4,32}")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_SCOPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")

_log = logging.getLogger("synchromesh.clients")


class GrantChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of a grant: when, by whom, and why."""

    at: dt.datetime
    who: str
    why: str


class ClientGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client from outside may do, and until when.

    Attributes:
        id: the part of its credential that is no secret.
        name: the client's.
        scopes: the services that it may call, such as "orders", and single operations, such as
            "billing.quote".
        made: its making.
        expires: when it ends.
        serves: the service of `[system] joined` that it may register instances of, and calls as; ""
            for none.
        revoked: its end before that; None where it was not taken back.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    made: GrantChange
    expires: dt.datetime
    serves: str = ""
    revoked: GrantChange | None = None

    @property
    def caller(self) -> str:
        """Return who calls: no service has a dot in its name."""
        return self.serves or f"client.{self.name}"

    def state(self, now_us: int) -> str:
        """Return "active", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires.timestamp() * 1e6 <= now_us else "active"


class GrantsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of grants."""

    clients: tuple[ClientGrant, ...] = ()


class ClientCredential(Credential, frozen=True, kw_only=True):
    """The credential of a client from outside, which may do what its grant says.

    Attributes:
        grant: of the client.
    """

    grant: ClientGrant

    def check(self, service: str, operation: str = "") -> None:
        """Check that it may call an operation; "" is any that the service has.

        Raises:
            Forbidden: it may not.
        """
        scopes = self.grant.scopes
        what = f"{service}.{operation}" if operation else service
        if service not in scopes and what not in scopes:
            raise Forbidden(_no_scope(self.grant, what))


class Claims(msgspec.Struct, frozen=True):
    """What a client's own signature says."""

    aud: str
    exp: int


class _Head(msgspec.Struct, frozen=True):
    alg: str
    kid: str
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class ClientSigner(Signer):
    """Signs the hops of a client from outside, by the key of its credential.

    Raises:
        ConfigError: that is no credential.
    """

    def __init__(self, credential: str) -> None:
        self.client_id, key = read_credential(credential)
        super().__init__(key, lifetime_s=SIGNED_S)
        self._key_of_client = key
        self._signed: dict[str, tuple[str, int]] = {}

    def token(
        self,
        service: str,
        principal: Principal = NOBODY,
        *,
        audience: str,
        now_us: int,
        priority: Priority = Priority.INTERACTIVE,
    ) -> str:
        """Return a JWT for an audience; of the rest only the client's own word would speak."""
        del service, principal, priority
        made = self._signed.get(audience)
        if made is not None and now_us < made[1]:
            return made[0]
        lifetime_us = int(SIGNED_S * 1e6)
        claims = Claims(audience, (now_us + lifetime_us) // 1_000_000)
        head = {"alg": "HS256", "typ": "JWT", "kid": self.client_id}
        text = ".".join(_unpadded(msgspec.json.encode(each)) for each in (head, claims))
        signed = f"{text}.{_unpadded(_mac(self._key_of_client, text))}"
        if len(self._signed) >= CACHE_MAX:
            self._signed.clear()
        self._signed[audience] = (signed, now_us + lifetime_us // 2)
        return signed

    def __repr__(self) -> str:
        return f"<ClientSigner {self.client_id}>"


class ClientBook:
    """Admits clients from outside by the file of their grants.

    Args:
        path: of the file; without one there are no clients.
        keys_of: returns the keys that a client may sign by, by its id.

    Attributes:
        shared: returns the grants that processes on many hosts share, in place of those of the
            file; None where the file has them.
        why_old: returns why those may be old, in words; "" where they are not.
    """

    def __init__(self, path: Path, keys_of: Callable[[str], Iterable[bytes]]) -> None:
        self.shared: Callable[[], Mapping[str, ClientGrant]] | None = None
        self.why_old: Callable[[], str] = lambda: ""
        self._path = path
        self._keys_of = keys_of
        self._file: WatchedFile[dict[str, ClientGrant]] | None = None
        self._looked_us = 0
        # What was signed is verified once, and what it may is looked up each time.
        self._verified: dict[str, tuple[str, Claims]] = {}

    def admit(self, token: str, *, audience: str, now_us: int) -> ClientCredential:
        """Return what a client's token says, as its grant is now.

        Raises:
            Unauthenticated: it is forged, expired, for another audience, or its grant is over.
            Forbidden: the grant names nothing of the audience.
        """
        client_id, claims = self._verified.get(token) or self._read(token)
        if claims.aud != audience:
            raise Unauthenticated(
                f"the token of this client is for {claims.aud[:80]!r}, and was shown to "
                f"{audience!r}; sign one for each service"
            )
        grant = self._grants(now_us).get(client_id)
        if grant is None:
            # It was signed by a key of this system, which has perhaps made it since the last look.
            grant = self._grants(-1).get(client_id)
        if grant is None:
            raise Unauthenticated(
                f"this system has made no credential {client_id!r}, or has forgotten it; whoever "
                f"runs it makes one: {MADE_BY}"
            )
        state = grant.state(now_us)
        if state != "active":
            at = grant.revoked.at if grant.revoked is not None else grant.expires
            raise Unauthenticated(
                f"the credential of client {grant.name!r} is {state}, since "
                f"{at:%Y-%m-%d %H:%M} UTC; whoever runs the system makes another: {MADE_BY}"
            )
        # A whole number of any length: as a float it may be none.
        left_s = (claims.exp * 1_000_000 - now_us) // 1_000_000
        if left_s < -SKEW_S:
            raise Unauthenticated("the token of this client has expired; sign another one")
        if left_s > LIFETIME_S + SKEW_S:
            raise Unauthenticated(
                f"the token of this client ends in more than {LIFETIME_S:g} s; sign one that ends "
                "sooner, and another one after it"
            )
        reached = {scope.partition(".")[0] for scope in grant.scopes}
        if audience not in reached and audience != REGISTRY:
            raise Forbidden(_no_scope(grant, audience))
        principal = Principal(f"{KIND}:{grant.name}", frozenset(grant.scopes), KIND)
        return ClientCredential(
            grant.caller, principal, audience, claims.exp * 1_000_000, grant=grant
        )

    def _grants(self, now_us: int) -> Mapping[str, ClientGrant]:
        """Return the grants by id, as they were half a second ago or later; -1 looks now."""
        if self.shared is not None:
            return self.shared()
        if self._file is None:
            try:
                self._file = WatchedFile(self._path, "the clients from outside", read_grants)
            except ConfigError as error:
                _log.error("no client from outside is let in: %s", error.message)
                raise Unauthenticated(
                    "the grants of clients cannot be read here; the log of this system says why"
                ) from error
            self._looked_us = now_us
        elif not 0 <= now_us - self._looked_us < LOOK_US:
            self._looked_us = now_us
            self._file.reread()
        return self._file.value

    def _read(self, token: str) -> tuple[str, Claims]:
        """Return whose a token is, and its claims. Raises Unauthenticated."""
        text, _, mac = token.rpartition(".")
        head, _, body = text.partition(".")
        try:
            said = msgspec.json.decode(_padded(head), type=_Head)
            claims = msgspec.json.decode(_padded(body), type=Claims)
            shown = _padded(mac)
        except (binascii.Error, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise Unauthenticated(
                "the token of this client cannot be read; it is a JWT with alg, kid, aud and exp"
            ) from error
        if said.alg != "HS256" or said.crit is not msgspec.UNSET or not _ID.fullmatch(said.kid):
            raise Unauthenticated(
                "the token of this client is not signed as one is: alg HS256, no crit, and as kid "
                "the second part of the credential"
            )
        keys = self._keys_of(said.kid)
        if not any(hmac.compare_digest(shown, _mac(each, text)) for each in keys):
            raise Unauthenticated(
                "the token of this client was not signed by a credential of this system"
            )
        if len(self._verified) >= CACHE_MAX:
            self._verified.clear()
        found = self._verified[token] = said.kid, claims
        return found

    def __repr__(self) -> str:
        known = "not read" if self._file is None else f"{len(self._file.value)} grants"
        return f"<ClientBook {self._path.name}: {known}>"


def credential_text(client_id: str, key: bytes) -> str:
    """Return the text of a credential.

    Example:
        >>> text = credential_text("abcd", b"0" * 32)
        >>> text, read_credential(text) == ("abcd", b"0" * 32)
        ('smc_abcd_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA', True)
    """
    return f"{PREFIX}{client_id}_{_unpadded(key)}"


def read_credential(text: str) -> tuple[str, bytes]:
    """Return the id and the key of a credential.

    Raises:
        ConfigError: it is none; the message has nothing of it.
    """
    matched = _CREDENTIAL.fullmatch(text.strip())
    if matched is None:
        raise ConfigError(
            f"that is no credential of a client: {len(text)} characters, smc_<id>_<key> is "
            f"expected; whoever runs the system makes one: {MADE_BY}"
        )
    return matched[1], _padded(matched[2])


def read_grants(path: Path) -> dict[str, ClientGrant]:
    """Return the grants of a file by id; none where there is no file.

    Raises:
        ConfigError: it is wrong.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return {each.id: each for each in decode_grants(data, str(path))}


def decode_grants(data: bytes, where: str) -> tuple[ClientGrant, ...]:
    """Return the grants that are written somewhere. Raises ConfigError where one is wrong."""
    try:
        found = msgspec.json.decode(data, type=GrantsFile).clients
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the clients in {where} cannot be read: {error}") from error
    for each in found:
        check_grant(each, where)
    return found


def check_grant(grant: ClientGrant, where: str) -> None:
    """Check what a grant says. Raises ConfigError."""
    wrong = [scope for scope in grant.scopes if not _SCOPE.fullmatch(scope)]
    if not _ID.fullmatch(grant.id):
        why = "its id is not 4 to 32 lower-case letters and digits"
    elif not _NAME.fullmatch(grant.name):
        why = "a name is 1 to 40 of a to z, 0 to 9, _ and -, a letter first"
    elif wrong:
        why = f'{wrong[0][:80]!r} is no scope; write a service, or "service.operation"'
    elif grant.expires.tzinfo is None:
        why = 'expires has no time zone; write it such as "...T00:00:00Z"'
    else:
        return
    raise ConfigError(f"client {grant.name[:40]!r} in {where}: {why}")


def _no_scope(grant: ClientGrant, what: str) -> str:
    known = ", ".join(grant.scopes) or "nothing"
    return (
        f"client {grant.name!r} may not call {what}: its credential is for {known}; whoever runs "
        f"the system makes another: {MADE_BY.replace('SERVICE', what)}"
    )


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _padded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
