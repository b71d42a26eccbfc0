"""Tells who asks by the signed tokens of an issuer: JWT, as OAuth 2.0 and OpenID Connect use them.

A valid token's verdict is kept until it expires, under a digest that only this process can make, so
that a warm request pays for one fast hash. No token is written to a log, a trace or an error.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from synchromesh.errors import CallError, ConfigError, RemoteFailed, Shed, Unauthenticated
from synchromesh.gateway.jwks import Fetcher, FileKeys, KeySource, UrlKeys, mistake_of
from synchromesh.gateway.keys import PREFIX
from synchromesh.gateway.principal import (
    API_KEY,
    AUTHORIZATION,
    Folders,
    KeptVerdict,
    bearer_of,
    credential_of,
)
from synchromesh.gateway.shapes import is_a
from synchromesh.gateway.tokens import (
    ALGORITHMS,
    Claims,
    TokenRules,
    UnknownKey,
    Verified,
    issuer_of,
    judge,
    need_joserfc,
)
from synchromesh.http import HttpExchange, HttpRequest, KeptFields
from synchromesh.identity import Principal, checked
from synchromesh.runtime import Runtime

LEEWAY_MAX_S = 600.0

_AUTHORIZATION: Final = AUTHORIZATION.encode()
_API_KEY: Final = API_KEY.encode()

_log = logging.getLogger("synchromesh.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class JWT:
    """Authenticates by the tokens of one issuer: `Authorization: Bearer eyJ...` (extra `jwt`).

    A token of another issuer is left to the authenticators behind this one. The principal is
    `prefix` and the token's subject, so that nobody who may choose a name at the issuer can take
    that of an API key. Without an algorithm that is symmetric, and with the keys of the issuer
    alone, no token can be made by whoever can read what is public.

    Attributes:
        issuer: what `iss` says, to the letter.
        audience: `aud` names this, or one of these.
        jwks: the file of the issuer's public keys (RFC 7517), relative to the system's folder, or
            their `https://` URL; "" asks the issuer, by OpenID Connect Discovery. A URL is fetched
            every ten minutes, and for a key that is not known; until the first answer, tokens get
            503. The last keys that were good stay.
        algorithms: that tokens may be signed by: RS256, RS384, RS512, PS256, PS384, PS512, ES256,
            ES384, ES512, EdDSA and Ed25519 are known.
        scopes_claim: the claims whose texts, or lists of texts, are the scopes; "a.b" is b in a.
            What cannot be a scope, such as a group's name with a blank in it, is left out;
            `grants` may give a scope for it.
        principal_claim: the claim that names who asks.
        prefix: what the names of principals begin with.
        claims: those that services are told of whoever asks (`Principal.claim`), under these names:
            texts, whole numbers, true or false, and lists of texts. "a.b" is b in a.
        grants: returns more scopes by what a token says, or refuses it by raising `Unauthenticated`
            or `Forbidden`; it must not wait.
        required: claims that have to be there, besides exp, iss, aud and who asks.
        typ: what the header's `typ` has to be, such as "at+jwt"; "" takes "JWT", "at+jwt" or none.
        leeway_s: how far clocks may be apart, in seconds.
        kept_max: verdicts that are kept.

    Example:
        >>> JWT(issuer="https://id.servo.works", audience="api", jwks="keys.json").prefix
        'jwt:'
    """

    kind: ClassVar[str] = "token"

    issuer: str
    audience: str | Sequence[str]
    jwks: str = ""
    algorithms: Sequence[str] = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
    scopes_claim: str | Sequence[str] = "scope"
    principal_claim: str = "sub"
    prefix: str = "jwt:"
    claims: Sequence[str] = ()
    grants: Callable[[Claims], Iterable[str]] | None = None
    required: Sequence[str] = ()
    typ: str = ""
    leeway_s: float = 30.0
    kept_max: int = 10_000

    def open(self, folders: Folders, runtime: Runtime) -> TokenVerifier:
        """Read the keys, or begin to fetch them.

        Raises:
            ConfigError: a rule is wrong, or the file of keys is missing or wrong.
            MissingExtra: joserfc is not installed.
        """
        mistakes = self.mistakes()
        if mistakes:
            raise ConfigError("; ".join(mistakes))
        need_joserfc()
        source: KeySource
        if self._is_file():
            source = FileKeys(folders.system / self.jwks)
        else:
            source = UrlKeys(self.jwks, self.issuer, Fetcher(runtime.network))
        rules = TokenRules(
            issuer=self.issuer,
            audiences=frozenset(_texts(self.audience)),
            algorithms=frozenset(self.algorithms),
            principal_claim=self.principal_claim,
            scopes_claims=_texts(self.scopes_claim),
            prefix=self.prefix,
            told=_texts(self.claims),
            required=tuple(self.required),
            typ=self.typ,
            leeway_s=self.leeway_s,
        )
        return TokenVerifier(rules, source, runtime, grants=self.grants, kept_max=self.kept_max)

    def security_schemes(self) -> Mapping[str, Mapping[str, object]]:
        """Return how a client sends its token; each issuer has a scheme of its own."""
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", self.issuer.removeprefix("https://"))
        told = f"A token of `{self.issuer}` for {' or '.join(_texts(self.audience))}."
        return {
            f"JWT_{name}": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": told,
            }
        }

    def mistakes(self) -> tuple[str, ...]:
        """Return what is wrong with the rules, a sentence each; no file is read."""
        return tuple(f"JWT of {self.issuer!r}: {mistake}" for mistake in self._mistakes())

    def _is_file(self) -> bool:
        return bool(self.jwks) and "://" not in self.jwks

    def _mistakes(self) -> Iterable[str]:
        if not self.issuer:
            yield "issuer is empty; write what the tokens' iss says"
        if not all(_texts(self.audience)) or not _texts(self.audience):
            yield "audience is empty; a token for somebody else would be taken"
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown or not self.algorithms:
            named = repr(unknown[0]) if unknown else "none"
            yield (
                f"algorithms: {named} is not known; take from {', '.join(ALGORITHMS)} (HS256 and "
                "the like are left out: who can verify by them can also sign)"
            )
        if not 0 <= self.leeway_s <= LEEWAY_MAX_S:
            yield f"leeway_s is {self.leeway_s:g}, and 0 to {LEEWAY_MAX_S:g} seconds are possible"
        if self.kept_max < 1:
            yield "kept_max is the number of verdicts that are kept, 1 or more"
        if not self._is_file():
            url, what = (self.jwks, "jwks") if self.jwks else (self.issuer, "issuer, without jwks,")
            mistake = mistake_of(url)
            if mistake:
                yield f"{what} {mistake}"


class TokenVerifier:
    """Verifies the tokens of one issuer."""

    def __init__(
        self,
        rules: TokenRules,
        source: KeySource,
        runtime: Runtime,
        *,
        grants: Callable[[Claims], Iterable[str]] | None = None,
        kept_max: int = 10_000,
    ) -> None:
        self._rules = rules
        self._source = source
        self._wall_us = runtime.wall_us
        self._grants = grants
        self._kept_max = kept_max
        # Made anew by each process: what is kept is of no use outside it.
        self._blinded = hashlib.blake2b(key=runtime.secret_rng.randbytes(32), digest_size=32)
        self._kept: dict[bytes, tuple[Principal, float]] = {}
        self._kept_by = source.keys
        self._swept_s = float("-inf")

    @property
    def issuer(self) -> str:
        """Whose tokens it verifies."""
        return self._rules.issuer

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        """Return whose token it is; None where there is none, or one of another issuer.

        Raises:
            Unauthenticated: the token is not valid, or there are several credentials.
            Forbidden: `grants` refused it.
            Shed: the keys of the issuer are not there yet.
            RemoteFailed: `grants` failed.
        """
        found = credential_of(request.headers)
        if found is None or found[0] == API_KEY:
            return None
        token, field = bearer_of(found[1]), found[1].encode("latin-1")
        if token is None or token.startswith(PREFIX):
            return None
        known = self._kept_for(field)
        if known is not None:
            return known
        if issuer_of(token) != self._rules.issuer:
            return None
        if self._source.keys is None:
            await self._source.renewed()
        if self._source.keys is None:
            raise Shed(
                "the keys of the token's issuer are not here yet; try again", retry_after_s=2
            )
        try:
            verified = self._judge(token)
        except UnknownKey:
            await self._source.renewed()
            verified = self._judge(token)
        principal = self._granted(verified)
        self._keep(field, principal, verified.expires_s)
        return principal

    async def ready(self) -> None:
        """Wait for the first keys, a few seconds at most.

        Raises:
            ConfigError: they could not be had.
        """
        if self._source.keys is None:
            await self._source.renewed()
        if self._source.keys is None:
            raise ConfigError(
                f"no keys of {self._rules.issuer} could be fetched; see the log for the reason, "
                "and try again once the issuer answers"
            )

    def known(self, exchange: HttpExchange) -> Principal | None:
        """Return whose token it is where that was found out before; None leaves it open."""
        field = None
        for name, value in exchange.pairs:
            if name in (_AUTHORIZATION, _API_KEY):
                if field is not None or name == _API_KEY:
                    return None  # which of them counts is unclear, or it is no token
                field = value
        if field is None:
            return None
        # As `_kept_for` does, without its frame.
        if self._kept_by is not self._source.keys:
            self._forget()
        kept = self._kept.get(self._digest(field))
        if kept is None:
            return None
        principal, until_us = kept[0], kept[1] * 1e6
        if until_us <= self._wall_us():
            return None
        fields = exchange.pairs
        if isinstance(fields, KeptFields):
            fields.verdict = KeptVerdict(principal, self, self._kept_by, until_us)
        return principal

    def holds(self, verdict: KeptVerdict) -> bool:
        """Tell whether a verdict still counts: by the keys that the issuer has now, and in time."""
        return (
            verdict.basis is self._source.keys
            and verdict.until_us is not None
            and self._wall_us() < verdict.until_us
        )

    def refresh(self) -> None:
        """Have the keys read or fetched again, where that is due."""
        self._source.refresh()

    async def close(self) -> None:
        """End a fetch that is under way. May be repeated."""
        await self._source.close()

    def __repr__(self) -> str:
        return f"<TokenVerifier of {self._rules.issuer}, {len(self._kept)} verified>"

    def _kept_for(self, field: bytes) -> Principal | None:
        if self._kept_by is not self._source.keys:
            self._forget()
        kept = self._kept.get(self._digest(field))
        return kept[0] if kept is not None and kept[1] * 1e6 > self._wall_us() else None

    def _judge(self, token: str) -> Verified:
        keys = self._source.keys
        if keys is None:
            raise Unauthenticated("the token's issuer has no keys")
        return judge(token, self._rules, keys, now_s=self._wall_us() / 1e6)

    def _granted(self, verified: Verified) -> Principal:
        if self._grants is None:
            return verified.principal
        try:
            given = self._grants(verified.claims)
            if is_a(given, str):
                raise TypeError("a text is no set of scopes; return a set of texts")
            more = frozenset(given)
        except CallError:
            raise
        except Exception as error:
            _log.exception("the grants of tokens of %s failed", self._rules.issuer)
            raise RemoteFailed("what the token grants could not be found out") from error
        principal = verified.principal
        try:
            return checked(msgspec.structs.replace(principal, scopes=principal.scopes | more))
        except ValueError as error:
            _log.error(
                "the grants of tokens of %s make no principal: %s", self._rules.issuer, error
            )
            raise RemoteFailed("what the token grants is no set of scopes, or too much") from error

    def _keep(self, field: bytes, principal: Principal, expires_s: float) -> None:
        if self._kept_by is not self._source.keys:
            self._forget()
        if len(self._kept) >= self._kept_max:
            now_s = self._wall_us() / 1e6
            # All of them are looked at, so not for each of a crowd.
            if now_s >= self._swept_s + 1.0:
                self._swept_s = now_s
                self._kept = {k: each for k, each in self._kept.items() if each[1] > now_s}
            while len(self._kept) >= self._kept_max:
                del self._kept[next(iter(self._kept))]
        self._kept[self._digest(field)] = principal, expires_s

    def _forget(self) -> None:
        """Drop all verdicts: a key that they rest on may have been withdrawn."""
        self._kept.clear()
        self._kept_by = self._source.keys

    def _digest(self, field: bytes) -> bytes:
        # A copy of a keyed hash is half the price of a new one.
        hashed = self._blinded.copy()
        hashed.update(field)
        return hashed.digest()


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
