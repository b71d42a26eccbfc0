"""Judges JSON Web Tokens: the rules of one issuer, the keys it signs with, and what a token says.

A token is three parts in base64url: header, claims, signature. Nothing in it is trusted before its
signature was verified by a key that the issuer published for that algorithm: neither a key nor an
address of one that the token itself brings is looked at, and symmetric algorithms are not known.
Sources: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7519 (JWT), RFC 8725 (best current practices).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from synchromesh.errors import ConfigError, MissingExtra, Unauthenticated
from synchromesh.identity import PRINCIPAL_BYTES_MAX, Claim, Principal, checked, is_one_scope

if TYPE_CHECKING:
    from joserfc.jwk import Key

Claims: TypeAlias = Mapping[str, Any]

TOKEN_MAX = 16 * 1024
JWKS_MAX = 512 * 1024
KEYS_MAX = 256
NAME_MAX = 128
RSA_BITS_MIN = 2048

# The kind of key that each algorithm takes, and its curve where there is one.
ALGORITHMS: Mapping[str, tuple[str, frozenset[str]]] = {
    **{
        f"{family}{bits}": ("RSA", frozenset[str]())
        for family in ("RS", "PS")
        for bits in (256, 384, 512)
    },
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
    "Ed25519": ("OKP", frozenset({"Ed25519"})),
}

_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# What a token brings along to be verified by is not looked at, and a token that has it is refused.
_BRINGS_KEYS = ("jwk", "jku", "x5u", "x5c")
_TYPES = frozenset({"jwt", "at+jwt"})
# What every reader of JSON takes whole.
_INT_END = 2**53
_WRONG = "the token is not valid: "


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key that an issuer published, and the algorithms that it may be used for.

    Attributes:
        kid: its id; "" where it has none.
    """

    kid: str
    algorithms: frozenset[str]
    key: Key


@dataclass(frozen=True, slots=True)
class PublishedKeys:
    """The keys of an issuer, and why some that it published are not used."""

    keys: tuple[VerifyingKey, ...] = ()
    unused: tuple[str, ...] = ()

    def find(self, algorithm: str, kid: str | None) -> VerifyingKey | None:
        """Return the one key that a token names; without a name, the only one there is for it."""
        fit = [key for key in self.keys if algorithm in key.algorithms]
        if kid is not None:
            fit = [key for key in fit if key.kid == kid]
        return fit[0] if len(fit) == 1 else None


class UnknownKey(Unauthenticated):
    """Raised where no key is known that a token could be verified by; newer keys may have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token has to be; `JWT` says what each of them means."""

    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    principal_claim: str
    scopes_claims: tuple[str, ...]
    prefix: str
    told: tuple[str, ...]
    required: tuple[str, ...]
    typ: str
    leeway_s: float


@dataclass(frozen=True, slots=True)
class Verified:
    """What a valid token says: who asks, until when, and all of its claims."""

    principal: Principal
    expires_s: float
    claims: Claims


def judge(token: str, rules: TokenRules, keys: PublishedKeys, *, now_s: float) -> Verified:
    """Verify a token, and return what it says.

    Args:
        now_s: the wall clock, in seconds since 1970.

    Raises:
        UnknownKey: its key is not among `keys`.
        Unauthenticated: it is not valid; the message says why, and nothing of what is in it.
    """
    matched = _TOKEN.fullmatch(token) if len(token) <= TOKEN_MAX else None
    if matched is None:
        raise _invalid("it is no signed token in three parts, or longer than 16 KiB")
    head, body, signature = matched.groups()
    algorithm, kid = _read_header(_read_object(head, "header"), rules)
    found = keys.find(algorithm, kid)
    if found is None:
        raise UnknownKey(f"{_WRONG}its issuer has published no key for it")
    if not _is_signed(found, algorithm, f"{head}.{body}".encode(), _bytes(signature, "signature")):
        raise _invalid("its signature is wrong")
    claims = _read_object(body, "claims")
    expires_s = _check_claims(claims, rules, now_s)
    return Verified(_principal_of(claims, rules), expires_s, claims)


def issuer_of(token: str) -> str | None:
    """Return the issuer that a token names, which is not verified; None where it has no such form.

    It only tells whose rules a token is judged by.
    """
    matched = _TOKEN.fullmatch(token) if len(token) <= TOKEN_MAX else None
    if matched is None:
        return None
    try:
        issuer = _read_object(matched[2], "claims").get("iss")
    except Unauthenticated:
        return None
    return issuer if isinstance(issuer, str) else None


def read_keys(data: bytes, where: str) -> PublishedKeys:
    """Read a JWK Set, key by key: one that is of no use does not take the others with it.

    Raises:
        ConfigError: it is no JWK Set, or no key in it can verify a token.
        MissingExtra: joserfc is not installed.
    """
    try:
        entries = json.loads(data[: JWKS_MAX + 1])["keys"] if len(data) <= JWKS_MAX else None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{where} is no JWK Set, such as {{"keys": [{{"kty": "RSA", ...}}]}} (RFC 7517)'
        ) from error
    if not isinstance(entries, list) or len(entries) > KEYS_MAX:
        raise ConfigError(f"{where} is no JWK Set of at most {KEYS_MAX} keys and 512 KiB")
    keys: list[VerifyingKey] = []
    unused: list[str] = []
    for number, entry in enumerate(entries, 1):
        read = _read_key(entry)
        if isinstance(read, str):
            unused.append(f"key {number} is not used: {read}")
        else:
            keys.append(read)
    if not keys:
        reasons = "; ".join(unused) or "it is empty"
        raise ConfigError(f"{where} holds no key that could verify a token: {reasons}")
    return PublishedKeys(tuple(keys), tuple(unused))


def need_joserfc() -> None:
    """Raise MissingExtra where joserfc is not installed."""
    try:
        import joserfc  # noqa: F401
    except ImportError as error:
        raise MissingExtra("jwt", needed_for="JWT") from error


def _read_key(entry: object) -> VerifyingKey | str:
    """Return a key, or why it is of no use."""
    need_joserfc()
    from joserfc.jwk import JWKRegistry

    if not isinstance(entry, dict):
        return "it is no object"
    kind, curve = entry.get("kty"), entry.get("crv")
    if not all(isinstance(entry.get(name, ""), str) for name in ("kty", "crv", "alg", "use")):
        return "its kty, crv, alg or use is no text"
    operations = entry.get("key_ops")
    if kind == "oct" or "d" in entry:
        return "it is secret, and a key that verifies is public; replace it wherever it signs"
    if entry.get("use", "sig") != "sig" or (
        operations is not None and not (isinstance(operations, list) and "verify" in operations)
    ):
        return "it is not for signatures"
    kid = entry.get("kid", "")
    if not isinstance(kid, str):
        return "its kid is no text"
    fit = {
        name
        for name, (needed, curves) in ALGORITHMS.items()
        if kind == needed and (not curves or curve in curves) and entry.get("alg", name) == name
    }
    # RFC 9864 has names of their own for what RFC 8037 calls EdDSA.
    if entry.get("alg") in ("EdDSA", "Ed25519") and kind == "OKP" and curve == "Ed25519":
        fit = {"EdDSA", "Ed25519"}
    if not fit:
        return "its kind, curve or algorithm is not known here"
    if kind == "RSA" and isinstance(entry.get("n"), str):
        bits = len(entry["n"].rstrip("=").lstrip("A")) * 6
        if bits < RSA_BITS_MIN:
            return f"it has about {bits} bits, and {RSA_BITS_MIN} are the least"
    try:
        key = JWKRegistry.import_key(entry)
    except Exception as error:  # noqa: BLE001
        # Whatever a library makes of a strange key, the others are used.
        return f"it cannot be read ({type(error).__name__})"
    return VerifyingKey(kid, frozenset(fit), key)


def _read_header(header: Mapping[str, Any], rules: TokenRules) -> tuple[str, str | None]:
    """Return the algorithm and the id of the key that a header names."""
    algorithm, kid, typ = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str) or algorithm not in rules.algorithms:
        raise _invalid("it is signed by an algorithm that is not allowed here")
    for name in _BRINGS_KEYS:
        if name in header:
            raise _invalid(f"its header brings a key along ({name})")
    if "crit" in header or "b64" in header:
        raise _invalid("its header has an extension that is not known here")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= 512):
        raise _invalid("the id of its key is no text")
    if typ is not None and not isinstance(typ, str):
        raise _invalid("its typ is no text")
    kind = (typ or "").lower().removeprefix("application/")
    if rules.typ:
        if kind != rules.typ.lower().removeprefix("application/"):
            raise _invalid(f"its typ is not {rules.typ}")
    elif kind and kind not in _TYPES:
        raise _invalid("its typ says that it is no token for this")
    return algorithm, kid


def _is_signed(found: VerifyingKey, algorithm: str, signed: bytes, signature: bytes) -> bool:
    from joserfc.jws import JWSRegistry

    try:
        # The model itself: the registry would warn of the old name "EdDSA" at each token.
        return JWSRegistry.algorithms[algorithm].verify(signed, signature, found.key)
    except Exception:  # noqa: BLE001
        # Whatever a library makes of a strange signature, it is not valid.
        return False


def _check_claims(claims: Claims, rules: TokenRules, now_s: float) -> float:
    """Refuse claims that do not fit; return when they expire."""
    for name in rules.required:
        if name not in claims:
            raise _invalid(f"it lacks the claim {name}")
    expires_s = _time(claims, "exp")
    if expires_s is None:
        raise _invalid("it lacks the claim exp")
    if expires_s + rules.leeway_s <= now_s:
        raise _invalid("it has expired; get a new one")
    for name in ("nbf", "iat"):
        at_s = _time(claims, name)
        if at_s is not None and at_s - rules.leeway_s > now_s:
            raise _invalid(f"it is not valid yet ({name}); compare the clocks of both machines")
    if claims.get("iss") != rules.issuer:
        raise _invalid("it is of another issuer")
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise _invalid("it lacks the claim aud, or that is neither a text nor a list of texts")
    if rules.audiences.isdisjoint(named):
        raise _invalid("it is for another audience")
    return expires_s + rules.leeway_s


def _principal_of(claims: Claims, rules: TokenRules) -> Principal:
    who = claim_of(claims, rules.principal_claim)
    if not isinstance(who, str) or not 0 < len(who) <= NAME_MAX or not who.isprintable():
        raise _invalid(
            f"its claim {rules.principal_claim} is no name of 1 to {NAME_MAX} printable characters"
        )
    scopes: set[str] = set()
    for name in rules.scopes_claims:
        scopes.update(_scopes_of(claim_of(claims, name), name))
    told = tuple(
        (name, _claim(value, name))
        for name in rules.told
        if (value := claim_of(claims, name)) is not None
    )
    principal = Principal(rules.prefix + who, frozenset(scopes), "token", rules.issuer, told)
    try:
        return checked(principal)
    except ValueError as error:
        raise _invalid(
            f"its scopes and claims are longer than {PRINCIPAL_BYTES_MAX} bytes, or no Unicode; "
            "have its issuer put fewer into it"
        ) from error


def _claim(value: object, name: str) -> Claim:
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < _INT_END):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise _invalid(f"its claim {name} is no text, whole number, true or false, or list of texts")


def claim_of(claims: Claims, name: str) -> object:
    """Return a claim by its name, or by a path of names with dots: "realm_access.roles".

    Example:
        >>> claim_of({"realm_access": {"roles": ["buyer"]}}, "realm_access.roles")
        ['buyer']
    """
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _scopes_of(value: object, name: str) -> Iterable[str]:
    if value is None:
        return ()
    if isinstance(value, str):
        return filter(is_one_scope, value.split())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        # The name of a group may have blanks: told with others it would be several.
        return filter(is_one_scope, value)
    raise _invalid(f"its claim {name} is neither a text nor a list of texts")


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(f"its claim {name} is no number of seconds")
    # A whole number may be too large for a float.
    if (isinstance(value, float) and not math.isfinite(value)) or abs(value) > 1e12:
        raise _invalid(f"its claim {name} is out of bounds")
    return float(value)


def _read_object(part: str, what: str) -> dict[str, Any]:
    try:
        read = json.loads(
            _bytes(part, what).decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise _invalid(f"its {what} cannot be read")
    return read


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is there twice: which of them counts, readers disagree about."""
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name is there twice")
    return read


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _bytes(part: str, what: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        raise _invalid(f"its {what} cannot be read") from error
    # One text for the same bytes: the last character carries no bits that are not read.
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise _invalid(f"its {what} cannot be read")
    return data


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated(_WRONG + why)
