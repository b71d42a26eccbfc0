"""Tokens: what is valid, what is not, the keys of issuers, and verdicts that are kept."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import random
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from gateway_fakes import came, came_as
from synchromesh.errors import ConfigError, Forbidden, RemoteFailed, Shed, Unauthenticated
from synchromesh.gateway import (
    JWT,
    ApiKeys,
    Folders,
    Forward,
    Gateway,
    KeysFile,
    Principal,
    check,
    make_key,
)
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.jwks import WAITING_MAX, UrlKeys
from synchromesh.gateway.jwt import TokenVerifier
from synchromesh.gateway.principal import Authenticator, QuickAuthenticator
from synchromesh.gateway.tokens import Claims, TokenRules, UnknownKey, judge, read_keys
from synchromesh.http import Headers, HttpRequest, KeptFields
from synchromesh.runtime import Runtime
from synchromesh.testing import run

ISSUER, NOW_S = "https://id.servo.works", 1_800_000_000.0
RULES = TokenRules(
    issuer=ISSUER,
    audiences=frozenset({"api", "shop"}),
    algorithms=frozenset({"RS256", "PS384", "ES256", "ES512", "EdDSA", "Ed25519"}),
    principal_claim="sub",
    scopes_claims=("scope", "realm_access.roles"),
    prefix="jwt:",
    told=(),
    required=(),
    typ="",
    leeway_s=30.0,
)
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
OTHER_RSA = RSAKey.generate_key(2048, {"kid": "other"})
P256 = ECKey.generate_key("P-256", {"kid": "p256"})
P521 = ECKey.generate_key("P-521", {"kid": "p521"})
ED25519 = OKPKey.generate_key("Ed25519", {"kid": "ed"})
CLAIMS = {"iss": ISSUER, "aud": "api", "sub": "ada", "exp": NOW_S + 60, "scope": "orders:write"}
GONE = object()
BOTH = frozenset({"orders:write", "orders:read"})


def jwks(*keys: Key, **more: Any) -> bytes:
    return json.dumps({"keys": [{**key.as_dict(private=False), **more} for key in keys]}).encode()


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(
    claims: object = CLAIMS,
    *,
    key: Key = RSA,
    alg: str = "RS256",
    signed_as: str = "",
    head: dict[str, Any] | None = None,
) -> str:
    """Sign a token; `head` changes its header, or with GONE removes a field."""
    header = {"alg": alg, "kid": key.kid, "typ": "JWT", **(head or {})}
    header = {name: value for name, value in header.items() if value is not GONE}
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = f"{text(json.dumps(header).encode())}.{text(body)}"
    model = JWSRegistry.algorithms[signed_as or alg]
    return f"{signed}.{text(model.sign(signed.encode(), key))}"


def claims(**changes: Any) -> dict[str, Any]:
    made = {**CLAIMS, **changes}
    return {name: value for name, value in made.items() if value is not GONE}


def judged(text: str, **changes: Any) -> Principal:
    rules = TokenRules(**{**{name: getattr(RULES, name) for name in RULES.__slots__}, **changes})
    return judge(text, rules, KEYS, now_s=NOW_S).principal


# A key that its issuer has for one algorithm alone, and one of a curve that is not published.
FOR_PKCS = RSAKey.generate_key(2048, {"kid": "pkcs", "alg": "RS256"})
ED448 = OKPKey.generate_key("Ed448", {"kid": "ed448"})
KEYS = read_keys(jwks(RSA, P256, P521, ED25519, FOR_PKCS), "keys.json")

VALID = {
    "RS256": token(),
    "PS384": token(alg="PS384"),
    "ES256": token(key=P256, alg="ES256"),
    "ES512": token(key=P521, alg="ES512"),
    "EdDSA": token(key=ED25519, alg="EdDSA"),
    "Ed25519": token(key=ED25519, alg="Ed25519"),
    "no typ": token(head={"typ": GONE}),
    "an access token": token(head={"typ": "at+jwt"}),
    "a typ in full": token(head={"typ": "application/AT+JWT"}),
    "fields that are not known": token(head={"x5t": "abc", "nonce": "n", "iss": "?"}),
    "no kid, one key for it": token(key=P256, alg="ES256", head={"kid": GONE}),
    "several audiences": token(claims(aud=["other", "shop"])),
    "expired within the leeway": token(claims(exp=NOW_S - 29.9)),
    "early within the leeway": token(claims(nbf=NOW_S + 29.9, iat=NOW_S + 29.9)),
    "a whole number of seconds": token(claims(exp=int(NOW_S) + 60)),
    "a list of scopes": token(claims(scope=["orders:write"])),
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_token_says_who_asks(name: str) -> None:
    """By any algorithm that is allowed, and whatever else is in it."""
    assert judged(VALID[name]) == Principal("jwt:ada", frozenset({"orders:write"}), "token", ISSUER)


def test_scopes_come_from_all_claims_that_are_named() -> None:
    """Also from those within others; a claim that is not there gives none."""
    found = judged(token(claims(scope="a b", realm_access={"roles": ["buyer", "a"]})))
    assert found.scopes == {"a", "b", "buyer"}
    assert judged(token(claims(scope=GONE))).scopes == frozenset()
    # The name of a group is no scope where it has a blank: told with others it would be several.
    groups = ["Sales admin", "buyer", "", 'a"b', "User.Read", "\ud800"]
    assert judged(token(claims(scope=groups))).scopes == {"buyer", "User.Read"}
    assert judged(token(claims(scope="a\u00a0b\tc \u00e9"))).scopes == {"a", "b", "c"}
    named = claims(**{"https://servo.works/roles": ["admin"]})
    changed = judged(token(named), scopes_claims=("https://servo.works/roles",))
    assert changed.scopes == {"admin"}


def unsigned(header: object, body: object = CLAIMS, signature: str = "") -> str:
    return f"{text(json.dumps(header).encode())}.{text(json.dumps(body).encode())}.{signature}"


def spoiled(made: str, place: int, by: Callable[[str], str]) -> str:
    parts = made.split(".")
    parts[place] = by(parts[place])
    return ".".join(parts)


def hmac_by_public_key() -> str:
    """The public key as the secret of an HMAC: where `alg` decides, it verifies."""
    signed = unsigned({"alg": "HS256", "kid": "rsa"}).rstrip(".")
    by_key = hmac.digest(RSA.as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{text(by_key)}"


def other_last(part: str) -> str:
    """Return a last character that differs only in bits that are not read."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(part[-1]) + 1]


DEEP = b'{"a":' * 1500 + b"1" + b"}" * 1500
INVALID = {
    "nothing": ("", "three parts"),
    "two parts": ("a.b", "three parts"),
    "four parts": (token() + ".a", "three parts"),
    "five parts, as of an encrypted one": ("a.b.c.d.e", "three parts"),
    "blanks": (f" {token()}", "three parts"),
    "padding": (token() + "=", "three parts"),
    "the other alphabet": ("a+b/.a.a", "three parts"),
    "too long": (token(claims(more="x" * 20_000)), "16 KiB"),
    "a header that is no base64": (spoiled(token(), 0, lambda part: part[:-1]), "header"),
    "a header that is no JSON": (spoiled(token(), 0, lambda _: text(b"{")), "header"),
    "a header that is no object": (unsigned(["RS256"], signature="aa"), "header"),
    "a header with a name twice": (
        text(b'{"alg":"none","alg":"RS256"}') + ".e30.aa",
        "header",
    ),
    "alg none": (unsigned({"alg": "none"}, signature="aa"), "algorithm"),
    "alg None in other letters": (unsigned({"alg": "nOnE"}, signature="aa"), "algorithm"),
    "no alg": (unsigned({"kid": "rsa"}, signature="aa"), "algorithm"),
    "an alg that is no text": (unsigned({"alg": ["RS256"]}, signature="aa"), "algorithm"),
    "an alg that is not allowed": (token(alg="RS512"), "algorithm"),
    "an HMAC by the public key": (hmac_by_public_key(), "algorithm"),
    "a jwk of its own": (
        token(key=OTHER_RSA, head={"kid": "rsa", "jwk": OTHER_RSA.as_dict(private=False)}),
        "brings a key along .jwk",
    ),
    "a jku": (token(head={"jku": "https://else.where/keys"}), "brings a key along .jku"),
    "an x5u": (token(head={"x5u": "https://else.where/cert"}), "brings a key along .x5u"),
    "an x5c": (token(head={"x5c": ["MIIB"]}), "brings a key along .x5c"),
    "a crit that is not known": (token(head={"crit": ["exp"], "exp": 1}), "extension"),
    "an empty crit": (token(head={"crit": []}), "extension"),
    "an unencoded payload": (token(head={"b64": False, "crit": ["b64"]}), "extension"),
    "b64 without crit": (token(head={"b64": False}), "extension"),
    "a kid that is no text": (token(head={"kid": 7}), "id of its key"),
    "an empty kid": (token(head={"kid": ""}), "id of its key"),
    "a long kid": (token(head={"kid": "k" * 600}), "id of its key"),
    "a kid that leads elsewhere": (token(head={"kid": "../../dev/null"}), "no key for it"),
    "a kid that is not known": (token(key=OTHER_RSA), "no key for it"),
    "another's key under a known kid": (token(key=OTHER_RSA, head={"kid": "rsa"}), "signature"),
    "a kid of another kind of key": (token(head={"kid": "p256"}), "no key for it"),
    "a curve that is not the algorithm's": (
        token(key=P521, alg="ES256", signed_as="ES512"),
        "no key for it",
    ),
    "a typ of another use": (token(head={"typ": "dpop+jwt"}), "typ"),
    "a typ of a logout": (token(head={"typ": "logout+jwt"}), "typ"),
    "a typ that is no text": (token(head={"typ": 1}), "typ"),
    "an empty signature": (spoiled(token(), 2, lambda _: ""), "three parts"),
    "half a signature": (spoiled(token(), 2, lambda part: part[: len(part) // 2]), "signature"),
    "a signature of zeros": (spoiled(token(), 2, lambda _: text(bytes(256))), "signature"),
    "a signature of zeros, EC": (
        spoiled(token(key=P256, alg="ES256"), 2, lambda _: text(bytes(64))),
        "signature",
    ),
    "an EC signature in DER": (
        spoiled(token(key=P256, alg="ES256"), 2, lambda _: text(b"0\x06\x02\x01\x01\x02\x01\x01")),
        "signature",
    ),
    "a signature with bits too many": (
        spoiled(token(key=P256, alg="ES256"), 2, lambda part: part[:-1] + other_last(part)),
        "signature cannot be read",
    ),
    "other claims under a signature": (
        spoiled(token(), 1, lambda _: text(json.dumps(claims(sub="root")).encode())),
        "signature",
    ),
    "claims that are a list": (token([CLAIMS]), "claims cannot"),
    "claims that are no JSON": (token(b"{'iss': 1}"), "claims cannot"),
    "a claim that is there twice": (
        token(json.dumps(CLAIMS).encode()[:-1] + b',"sub":"root"}'),
        "claims cannot",
    ),
    "NaN": (token(json.dumps(claims(exp=float("nan"))).encode()), "claims cannot"),
    "infinity": (token(json.dumps(claims(exp=float("inf"))).encode()), "claims cannot"),
    "claims that are deep": (token(DEEP), "claims cannot|issuer|exp"),
    "no exp": (token(claims(exp=GONE)), "lacks the claim exp"),
    "an exp of null": (token(claims(exp=None)), "exp is no number"),
    "an exp in text": (token(claims(exp=str(NOW_S + 60))), "exp is no number"),
    "an exp of true": (token(claims(exp=True)), "exp is no number"),
    "an exp beyond all bounds": (token(claims(exp=10**400)), "exp is out of bounds"),
    "expired": (token(claims(exp=NOW_S - 31)), "expired"),
    "expired just now": (token(claims(exp=NOW_S - 30)), "expired"),
    "not yet valid": (token(claims(nbf=NOW_S + 31)), "nbf"),
    "an nbf in text": (token(claims(nbf="soon")), "nbf is no number"),
    "made in the future": (token(claims(iat=NOW_S + 31)), "iat"),
    "no iss": (token(claims(iss=GONE)), "another issuer"),
    "another iss": (token(claims(iss=ISSUER + "/")), "another issuer"),
    "an iss in a list": (token(claims(iss=[ISSUER])), "another issuer"),
    "no aud": (token(claims(aud=GONE)), "aud"),
    "another aud": (token(claims(aud="apis")), "another audience"),
    "an empty list of aud": (token(claims(aud=[])), "another audience"),
    "an aud of numbers": (token(claims(aud=[1, "api"])), "aud"),
    "an aud that is an object": (token(claims(aud={"api": True})), "aud"),
    "no sub": (token(claims(sub=GONE)), "sub is no name"),
    "an empty sub": (token(claims(sub="")), "sub is no name"),
    "a sub that is a number": (token(claims(sub=7)), "sub is no name"),
    "a sub of two lines": (token(claims(sub="ada\nroot")), "sub is no name"),
    "a long sub": (token(claims(sub="a" * 129)), "sub is no name"),
    "scopes that are a number": (token(claims(scope=1)), "scope is neither"),
    "scopes that are objects": (token(claims(scope=[{"a": 1}])), "scope is neither"),
    "scopes without end": (token(claims(scope=" ".join(map(str, range(2000))))), "4096 bytes"),
    "a name twice within a claim": (
        token(json.dumps(CLAIMS).encode()[:-1] + b',"act":{"sub":"a","sub":"b"}}'),
        "claims cannot",
    ),
    "a name twice, spelt in two ways": (
        token(json.dumps(CLAIMS).encode()[:-1] + b',"\\u0073ub":"root"}'),
        "claims cannot",
    ),
    "claims that are not UTF-8": (token(b'{"iss":"\xff"}'), "claims cannot"),
    "claims with a byte order mark": (
        token(b"\xef\xbb\xbf" + json.dumps(CLAIMS).encode()),
        "claims",
    ),
    "claims and something behind": (token(json.dumps(CLAIMS).encode() + b"{}"), "claims cannot"),
    "a token within a token": (token(token().encode(), head={"cty": "JWT"}), "claims cannot"),
    "compressed": (token(b"x\x9c\x03\x00\x00\x00\x00\x01", head={"zip": "DEF"}), "claims cannot"),
    "the PSS of a key for PKCS1": (token(key=FOR_PKCS, alg="PS384"), "no key for it"),
    "RS256 in other letters": (
        unsigned({"alg": "rs256", "kid": "rsa"}, signature="aa"),
        "algorithm",
    ),
    "an alg with a NUL": (unsigned({"alg": "RS256\0", "kid": "rsa"}, signature="aa"), "algorithm"),
    "a key for another curve": (token(key=ED448, alg="EdDSA", head={"kid": "ed"}), "signature"),
    "PS384 signed as RS256": (token(alg="PS384", signed_as="RS256"), "signature"),
    "an nbf of null": (token(claims(nbf=None)), "nbf is no number"),
    "an iat in text": (token(claims(iat="now")), "iat is no number"),
    "an exp in a list": (token(claims(exp=[NOW_S + 60])), "exp is no number"),
    "an exp in milliseconds": (token(claims(exp=NOW_S * 1000)), "exp is out of bounds"),
    "an aud of null": (token(claims(aud=None)), "aud"),
    "an aud in other letters": (token(claims(aud="API")), "another audience"),
    "an aud that holds it": (token(claims(aud="api shop")), "another audience"),
    "an iss of null": (token(claims(iss=None)), "another issuer"),
    "an iss in other letters": (token(claims(iss=ISSUER.upper())), "another issuer"),
    "an iss with a blank": (token(claims(iss=f"{ISSUER} ")), "another issuer"),
    "a sub in a list": (token(claims(sub=["ada"])), "sub is no name"),
    "a sub with a NUL": (token(claims(sub="ada\0")), "sub is no name"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_token_is_refused(name: str) -> None:
    """It says what is wrong, and nothing of what is in it."""
    made, why = INVALID[name]
    with pytest.raises(Unauthenticated, match=why) as refused:
        judged(made)
    told = refused.value.message
    assert not any(secret in told for secret in ("ada", "root", "else.where", "orders:write"))


def test_the_table_is_long_enough() -> None:
    """Whoever shortens it, notices."""
    assert len(INVALID) + len(VALID) >= 110


def test_what_a_rule_asks_for_has_to_be_there() -> None:
    """A typ, more claims, and another claim for the name."""
    with pytest.raises(Unauthenticated, match=r"typ is not at\+jwt"):
        judged(token(), typ="at+jwt")
    assert judged(token(head={"typ": "at+jwt"}), typ="at+jwt").name == "jwt:ada"
    assert judged(token(head={"typ": "AT+jwt"}), typ="application/at+jwt").name == "jwt:ada"
    for typ in ("JWT", "", "at+jwt ", "jwt+at", GONE):
        with pytest.raises(Unauthenticated, match=r"typ is not at\+jwt"):
            judged(token(head={"typ": typ}), typ="at+jwt")
    with pytest.raises(Unauthenticated, match="lacks the claim jti"):
        judged(token(), required=("jti",))
    assert judged(token(claims(client_id="erp")), principal_claim="client_id").name == "jwt:erp"


@pytest.mark.parametrize("leeway_s", [0.0, 30.0, 600.0])
def test_clocks_may_be_apart_by_the_leeway_and_no_more(leeway_s: float) -> None:
    """Of exp, nbf and iat alike; what exp says is over in the moment that it names."""
    for name, sign in (("exp", -1), ("nbf", 1), ("iat", 1)):
        within = claims(**{name: NOW_S + sign * (leeway_s - 0.001)})
        assert judged(token(within), leeway_s=leeway_s).name == "jwt:ada"
        beyond = claims(**{name: NOW_S + sign * (leeway_s + 0.001)})
        with pytest.raises(Unauthenticated, match=r"has expired|not valid yet"):
            judged(token(beyond), leeway_s=leeway_s)
    with pytest.raises(Unauthenticated, match="has expired"):
        judged(token(claims(exp=NOW_S - leeway_s)), leeway_s=leeway_s)


def test_claims_are_told_that_were_asked_for() -> None:
    """Those alone, under the names that were given; what cannot travel makes a token invalid."""
    more = {"email": "a@x", "site": 7, "is_staff": True, "roles": ["a", "b"], "tenant": {"id": "t"}}
    told = ("email", "site", "is_staff", "roles", "tenant.id", "age")
    found = judged(token(claims(**more)), told=told)
    assert found.claims == (
        ("email", "a@x"), ("site", 7), ("is_staff", True), ("roles", ("a", "b")),
        ("tenant.id", "t"),
    )  # fmt: skip
    assert (found.claim("tenant.id"), found.claim("age"), found.claim("tenant")) == (
        "t",
        None,
        None,
    )
    assert judged(token(claims(**more))).claims == ()
    for odd in (1.5, {"id": "t"}, [1], [["a"]], 2**53, -(10**400)):
        with pytest.raises(Unauthenticated, match="email is no text, whole number"):
            judged(token(claims(email=odd)), told=("email",))
    with pytest.raises(Unauthenticated, match="longer than 4096 bytes"):
        judged(token(claims(email="x" * 5000)), told=("email",))


def test_a_token_without_kid_needs_a_key_that_is_alone() -> None:
    """With several that fit, trying them all would make a token valid by the weakest of them."""
    keys = read_keys(jwks(RSA, OTHER_RSA), "keys.json")
    with pytest.raises(UnknownKey):
        judge(token(head={"kid": GONE}), RULES, keys, now_s=NOW_S)
    assert judge(token(), RULES, keys, now_s=NOW_S).principal.name == "jwt:ada"


# -- the keys of an issuer -------------------------------------------------------------------------

with warnings.catch_warnings(action="ignore"):
    SMALL = RSAKey.generate_key(1024, {"kid": "small"})


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("no object", "no object"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "it is secret"),
        (RSA.as_dict(private=True), "it is secret"),
        ({**RSA.as_dict(private=False), "use": "enc"}, "not for signatures"),
        ({**RSA.as_dict(private=False), "key_ops": ["encrypt"]}, "not for signatures"),
        ({**RSA.as_dict(private=False), "key_ops": 1}, "not for signatures"),
        ({**RSA.as_dict(private=False), "alg": "RSA-OAEP"}, "not known here"),
        ({**RSA.as_dict(private=False), "kid": 1}, "kid is no text"),
        ({**RSA.as_dict(private=False), "n": 1}, "cannot be read"),
        ({"kty": "RSA"}, "cannot be read"),
        ({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, "cannot be read"),
        ({"kty": "EC", "crv": "brainpoolP256r1", "x": "AA", "y": "AA"}, "not known here"),
        ({"kty": "new"}, "not known here"),
        ({"kty": "EC", "crv": ["P-256"]}, "no text"),
        ({"kty": {}}, "no text"),
        ({**RSA.as_dict(private=False), "alg": ["RS256"]}, "no text"),
        ({}, "not known here"),
        (SMALL.as_dict(private=False), "about 1026 bits"),
    ],
)
def test_a_key_that_is_of_no_use_takes_no_other_with_it(entry: object, why: str) -> None:
    """What is new or broken in a set is left out, with its reason."""
    good = P256.as_dict(private=False)
    keys = read_keys(json.dumps({"keys": [entry, good]}).encode(), "keys.json")
    assert [key.kid for key in keys.keys] == ["p256"]
    (reason,) = keys.unused
    assert why in reason
    with pytest.raises(ConfigError, match="holds no key that could verify"):
        read_keys(json.dumps({"keys": [entry]}).encode(), "keys.json")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"keys": {}}', b'{"keys": 1}', b"{" * 100_000, b'{"k":[]}', b"\xff"]
)
def test_what_is_no_set_of_keys_is_a_mistake(data: bytes) -> None:
    """It is told with its place."""
    with pytest.raises(ConfigError, match=r"keys\.json is no JWK Set"):
        read_keys(data, "keys.json")


def test_a_set_is_bounded() -> None:
    """Neither many keys nor much text takes the machine's time."""
    many = json.dumps({"keys": [P256.as_dict(private=False)] * 257}).encode()
    for data in (many, b" " * (512 * 1024) + jwks(RSA)):
        with pytest.raises(ConfigError, match="at most 256 keys and 512 KiB"):
            read_keys(data, "keys.json")


# -- at work ---------------------------------------------------------------------------------------


def bearer(made: str) -> Headers:
    return Headers([("authorization", f"Bearer {made}")])


def fields(made: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {made}".encode())]


def fresh(runtime: Runtime, key: Key = RSA, *, for_s: float = 60.0, **changes: Any) -> str:
    return token(claims(exp=runtime.wall_us() / 1e6 + for_s, **changes), key=key)


def at_work(
    tmp_path: Path, main: Callable[[Runtime, TokenVerifier], Awaitable[None]], **options: Any
) -> None:
    """Run a test with a verifier of the keys in a file, in virtual time."""
    (tmp_path / "keys.json").write_bytes(jwks(RSA))

    async def simulated(runtime: Runtime) -> None:
        rules = JWT(issuer=ISSUER, audience="api", jwks="keys.json", **options)
        verifier = rules.open(Folders(tmp_path, tmp_path / "run"), runtime)
        await main(runtime, verifier)
        await verifier.close()

    run(simulated)


def test_a_verdict_is_kept_until_its_token_expires(tmp_path: Path) -> None:
    """What is known is known at once, and not a moment longer."""

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        made = fresh(runtime, for_s=60)
        assert verifier.known(came_as(fields(made))) is None
        assert await verifier.authenticate(came(bearer(made))) == verifier.known(
            came_as(fields(made))
        )
        assert verifier.known(came_as([*fields(made), (b"x-api-key", b"")])) is None
        assert verifier.known(came_as([*fields(made), *fields(made)])) is None
        assert verifier.known(came_as(fields(made + "x"))) is None
        assert verifier.known(came_as([(b"host", b"x")])) is None
        await asyncio.sleep(89)
        assert verifier.known(came_as(fields(made))) is not None
        await asyncio.sleep(2)
        assert verifier.known(came_as(fields(made))) is None
        with pytest.raises(Unauthenticated, match="expired"):
            await verifier.authenticate(came(bearer(made)))

    at_work(tmp_path, main)


def test_verdicts_are_bounded(tmp_path: Path) -> None:
    """The oldest go; what has expired goes first."""

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        made = [fresh(runtime, sub=f"n{number}") for number in range(4)]
        for each in made:
            await verifier.authenticate(came(bearer(each)))
        assert [verifier.known(came_as(fields(each))) is not None for each in made] == [
            False, False, True, True,
        ]  # fmt: skip
        await asyncio.sleep(100)
        last = fresh(runtime)
        await verifier.authenticate(came(bearer(last)))
        assert repr(verifier) == f"<TokenVerifier of {ISSUER}, 1 verified>"

    at_work(tmp_path, main, kept_max=2)


def test_a_key_that_has_gone_ends_its_verdicts(tmp_path: Path) -> None:
    """The file is read again within a second; a broken one changes nothing."""

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        made = fresh(runtime)
        await verifier.authenticate(came(bearer(made)))
        (tmp_path / "keys.json").write_bytes(b"{")
        verifier.refresh()
        assert verifier.known(came_as(fields(made))) is not None
        (tmp_path / "keys.json").write_bytes(jwks(OTHER_RSA))
        verifier.refresh()
        assert verifier.known(came_as(fields(made))) is None
        with pytest.raises(UnknownKey):
            await verifier.authenticate(came(bearer(made)))
        assert await verifier.authenticate(came(bearer(fresh(runtime, OTHER_RSA)))) is not None

    at_work(tmp_path, main)


def test_a_verdict_that_fields_keep_ends_with_its_token_and_its_key(tmp_path: Path) -> None:
    """It is found with the fields, and looked at each time: by whom, by which keys, until when."""

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        made = fresh(runtime, for_s=60)
        kept = KeptFields(fields(made), b"as they came", 0)
        known = Identification([verifier]).known()
        assert known(came_as(kept)) is None
        assert kept.verdict is None
        found = await verifier.authenticate(came(bearer(made)))
        assert known(came_as(kept)) == known(came_as(kept)) == found
        # A gateway that does not ask this verifier makes nothing of what it has said.
        assert Identification([]).known()(came_as(kept)) is None
        await asyncio.sleep(91)
        assert known(came_as(kept)) is None
        kept = KeptFields(fields(fresh(runtime)), b"as they came", 0)
        await verifier.authenticate(came(Headers.from_wire(kept)))
        assert known(came_as(kept)) is not None
        (tmp_path / "keys.json").write_bytes(jwks(OTHER_RSA))
        verifier.refresh()
        assert known(came_as(kept)) is None

    at_work(tmp_path, main)


def test_a_token_by_a_new_key_has_the_file_read_at_once(tmp_path: Path) -> None:
    """An issuer may sign by a key in the moment in which it publishes it."""

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        (tmp_path / "keys.json").write_bytes(jwks(RSA, OTHER_RSA))
        assert await verifier.authenticate(came(bearer(fresh(runtime, OTHER_RSA)))) is not None

    at_work(tmp_path, main)


def test_other_credentials_are_left_to_others(tmp_path: Path) -> None:
    """Keys, other schemes and tokens of other issuers; two at once are refused."""

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        for headers in (
            Headers([]),
            Headers([("x-api-key", "sm_abc")]),
            Headers([("authorization", "Basic YTpi")]),
            bearer("sm_abcd_xyz"),
            bearer("opaque"),
            bearer(fresh(runtime, iss="https://other.works")),
        ):
            assert await verifier.authenticate(came(headers)) is None
        with pytest.raises(Unauthenticated, match="several credentials"):
            await verifier.authenticate(
                came(Headers([("authorization", f"Bearer {fresh(runtime)}"), ("x-api-key", "a")]))
            )

    at_work(tmp_path, main)


def test_a_callable_grants_scopes_by_claims_or_refuses(tmp_path: Path) -> None:
    """What it raises on purpose is the answer; what it raises by mistake is 500 and logged."""

    def grants(said: Claims) -> Iterable[str]:
        if said["sub"] == "mallory":
            raise Forbidden("mallory has been banned")
        given: dict[str, Any] = {
            "buyer": ["orders:write"],
            "clerk": ["orders:read"],
            "a text": "orders:write",
            "several": ["orders:write admin"],
            "a number": [7],
            "many": [f"scope:number-{number}" for number in range(300)],
        }
        found: Iterable[str] = given[said["role"]]
        return found

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        found = await verifier.authenticate(came(bearer(fresh(runtime, role="clerk"))))
        assert found == Principal("jwt:ada", BOTH, "token", ISSUER)
        with pytest.raises(Forbidden, match="banned"):
            await verifier.authenticate(came(bearer(fresh(runtime, sub="mallory"))))
        for role in ("unknown", "a text", "several", "a number", "many"):
            made = fresh(runtime, role=role)
            with pytest.raises(RemoteFailed):
                await verifier.authenticate(came(bearer(made)))
            assert verifier.known(came_as(fields(made))) is None

    at_work(tmp_path, main, grants=grants)


def test_authenticators_stand_beside_each_other(tmp_path: Path) -> None:
    """Keys and tokens of two issuers: each is known, at once too, by who it is for."""
    text_of_key, key = make_key("shop", ["orders:write"], rng=random.Random(1))
    (tmp_path / "api-keys.json").write_bytes(msgspec.json.encode(KeysFile((key,))))
    (tmp_path / "a.json").write_bytes(jwks(RSA))
    (tmp_path / "b.json").write_bytes(jwks(P256))

    async def simulated(runtime: Runtime) -> None:
        folders = Folders(tmp_path, tmp_path)
        all_of_them: list[Authenticator] = [
            auth.open(folders, runtime)
            for auth in (
                ApiKeys(),
                JWT(issuer="https://a", audience="api", jwks="a.json", prefix="a:"),
                JWT(issuer="https://b", audience="api", jwks="b.json", prefix="b:"),
            )
        ]
        until = runtime.wall_us() / 1e6 + 60
        credentials = {
            "shop": text_of_key,
            "a:ada": token(claims(iss="https://a", exp=until)),
            "b:ada": token(claims(iss="https://b", exp=until), key=P256, alg="ES256"),
        }
        known = Identification(all_of_them).known()
        for name, credential in credentials.items():
            found = [await each.authenticate(came(bearer(credential))) for each in all_of_them]
            assert [each.name for each in found if each is not None] == [name]
            at_once = known(came_as(fields(credential)))
            assert at_once is not None
            assert at_once.name == name
        assert known(came_as(fields("sm_nobody"))) is None
        assert all(isinstance(each, QuickAuthenticator) for each in all_of_them)

    run(simulated)


def test_a_token_of_an_unknown_issuer_is_told_to_the_log_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slash more is another issuer; whoever sends many of them does not fill the log."""
    (tmp_path / "a.json").write_bytes(jwks(RSA))

    async def main(runtime: Runtime) -> None:
        jwt = JWT(issuer="https://a", audience="api", jwks="a.json")
        identification = Identification([jwt.open(Folders(tmp_path, tmp_path), runtime)])
        until = runtime.wall_us() / 1e6 + 60

        async def refused(*fields: str) -> None:
            headers = bearer(fields[0]) if fields else Headers([])
            with pytest.raises(Unauthenticated) as error:
                await identification.of(came(headers))
            assert "https" not in error.value.message

        def told() -> list[str]:
            return [record.getMessage() for record in caplog.records]

        await refused()
        await refused("no-token")
        assert told() == []
        for _ in range(3):
            await refused(token(claims(iss="https://a/\n", exp=until)))
        (line,) = told()
        assert line == (
            "a token of the issuer 'https://a/\\n' was refused: it is not known here; known, to "
            "the letter: 'https://a'"
        )
        await asyncio.sleep(10.0)
        await refused(token(claims(iss="x" * 5000, exp=until)))
        assert len(told()) == 2
        assert len(told()[1]) < 400

    run(main)


def test_issuers_do_not_share_names() -> None:
    """Else one could make a token for a principal of another, or of an API key."""

    def mistakes(*auth: ApiKeys | JWT) -> tuple[str, ...]:
        return check(Gateway(routes=[Forward("GET /x", to="x")], auth=auth))

    one = JWT(issuer="https://a", audience="api")
    other = JWT(issuer="https://b", audience="api")
    assert mistakes(ApiKeys(), one) == ()
    assert mistakes(ApiKeys(), one, replace(other, prefix="b:")) == ()
    longer = replace(other, prefix="jwt:b:")
    for auth in ((one, other), (ApiKeys(), replace(one, prefix="")), (one, longer), (longer, one)):
        (mistake,) = mistakes(*auth)
        assert "can give principals the same names; give each its own prefix" in mistake


def test_who_cannot_tell_at_once_keeps_those_behind_it_waiting() -> None:
    """The order of authenticators is the order of their say."""

    class Slow:
        async def authenticate(self, request: HttpRequest) -> Principal | None:
            return None

        def refresh(self) -> None: ...

        async def close(self) -> None: ...

    class Quick(Slow):
        def known(self, given: object) -> Principal | None:
            return Principal("quick", frozenset())

    nothing = came_as([])
    assert Identification([Slow(), Quick()]).known()(nothing) is None
    assert Identification([Quick(), Slow()]).known()(nothing) == Principal("quick", frozenset())
    assert Identification([]).known()(nothing) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": ""}, "issuer is empty"),
        ({"audience": ""}, "audience is empty"),
        ({"audience": []}, "audience is empty"),
        ({"algorithms": ["HS256"]}, "'HS256' is not known"),
        ({"algorithms": ["none"]}, "'none' is not known"),
        ({"algorithms": []}, "none is not known"),
        ({"leeway_s": -1}, "leeway_s is -1"),
        ({"leeway_s": float("nan")}, "leeway_s is nan"),
        ({"leeway_s": 3600}, "leeway_s is 3600"),
        ({"kept_max": 0}, "kept_max"),
        ({"jwks": "http://id.servo.works/keys"}, "jwks is no https:// URL"),
        ({"jwks": "ftp://localhost/keys"}, "jwks is no https:// URL"),
        ({"jwks": "https://"}, "jwks is no URL"),
        ({"jwks": "https://ada:secret@id/keys"}, "jwks is no URL of a host, without a user"),
        ({"jwks": "", "issuer": "servo"}, "issuer, without jwks, is no URL"),
        ({"jwks": "nowhere.json"}, "cannot be read from .*nowhere.json: No such file"),
    ],
)
def test_a_mistake_in_the_rules_is_told_before_anything_listens(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """With its name, and without what may be secret in it."""
    options: dict[str, Any] = {"issuer": ISSUER, "audience": "api", "jwks": "keys.json", **changes}

    async def simulated(runtime: Runtime) -> None:
        with pytest.raises(ConfigError, match=why) as told:
            JWT(**options).open(Folders(tmp_path, tmp_path), runtime)
        assert "secret" not in told.value.message

    run(simulated)


def test_check_names_each_mistake_of_the_rules_once() -> None:
    """Those that need no file, beside those of the routes."""
    rules = JWT(issuer="https://a", audience="", jwks="http://a/keys", algorithms=["HS256"])
    mistakes = check(Gateway(auth=[rules], routes=[]))
    assert [each for each in mistakes if each.startswith("the gateway has no routes")]
    for why in ("audience is empty", "'HS256' is not known", "jwks is no https:// URL"):
        (mistake,) = [each for each in mistakes if why in each]
        assert mistake.startswith("JWT of 'https://a': ")
    assert len(mistakes) == 4


# -- keys from a URL -------------------------------------------------------------------------------


class Issuer:
    """Publishes keys at a URL; an answer that is an error is raised."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[float, str]] = []

    async def get(self, url: str) -> bytes:
        self.asked.append((asyncio.get_running_loop().time(), url))
        await asyncio.sleep(0.5)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def published(
    issuer: Issuer,
    main: Callable[[Runtime, TokenVerifier], Awaitable[None]],
    url: str = "https://k",
) -> None:
    """Run a test with a verifier of keys from a URL, looked after once a second."""

    async def simulated(runtime: Runtime) -> None:
        verifier = TokenVerifier(RULES, UrlKeys(url, ISSUER, issuer.get), runtime)

        async def keep() -> None:
            while True:
                verifier.refresh()
                await asyncio.sleep(1)

        kept = asyncio.get_running_loop().create_task(keep())
        await main(runtime, verifier)
        kept.cancel()
        await verifier.close()

    run(simulated, until_s=100_000)


def test_keys_are_fetched_every_ten_minutes_and_a_token_waits_for_the_first() -> None:
    """One fetch at a time, however many wait for it."""
    issuer = Issuer(jwks(RSA))

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        found = await asyncio.gather(
            *(verifier.authenticate(came(bearer(fresh(runtime, sub=f"n{n}")))) for n in range(20))
        )
        assert [each.name for each in found if each] == [f"jwt:n{n}" for n in range(20)]
        await asyncio.sleep(1900)
        assert len(issuer.asked) == 4

    published(issuer, main)


def test_an_unknown_key_has_them_fetched_once_more_and_not_for_each_token() -> None:
    """Made-up key ids make no traffic: one fetch in ten seconds, however many tokens come."""
    issuer = Issuer(jwks(RSA), jwks(RSA, OTHER_RSA))

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        await verifier.authenticate(came(bearer(fresh(runtime))))
        await asyncio.sleep(20)
        assert await verifier.authenticate(came(bearer(fresh(runtime, OTHER_RSA)))) is not None
        for _ in range(100):
            with pytest.raises(UnknownKey):
                await verifier.authenticate(came(bearer(fresh(runtime, SMALL))))
            await asyncio.sleep(1)
        assert len(issuer.asked) <= 13
        assert min(b[0] - a[0] for a, b in zip(issuer.asked, issuer.asked[1:], strict=False)) >= 10

    published(issuer, main)


class Hanging(Issuer):
    """Answers once, and then neither yes nor no."""

    async def get(self, url: str) -> bytes:
        if self.asked:
            self.asked.append((asyncio.get_running_loop().time(), url))
            await asyncio.sleep(5)
            raise ConfigError("https://k gave no answer")
        return await super().get(url)


def test_few_wait_for_an_issuer_that_hangs() -> None:
    """Made-up key ids hold 64 requests up at most; others are told at once to come again."""
    issuer = Hanging(jwks(RSA))

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        loop = asyncio.get_running_loop()
        good = bearer(fresh(runtime))
        assert await verifier.authenticate(came(good)) is not None
        await asyncio.sleep(20)
        waiting = [
            loop.create_task(
                verifier.authenticate(came(bearer(fresh(runtime, SMALL, sub=f"n{n}"))))
            )
            for n in range(WAITING_MAX)
        ]
        await asyncio.sleep(0.1)
        began_s = loop.time()
        with pytest.raises(Shed, match="try again"):
            await verifier.authenticate(came(bearer(fresh(runtime, SMALL))))
        assert await verifier.authenticate(came(good)) is not None
        waiting.pop().cancel()
        await asyncio.sleep(0.1)
        last = loop.create_task(verifier.authenticate(came(bearer(fresh(runtime, SMALL)))))
        await asyncio.sleep(0.1)
        assert loop.time() - began_s < 1
        assert not any(task.done() for task in (*waiting, last))
        ends = await asyncio.gather(*waiting, last, return_exceptions=True)
        assert {type(end) for end in ends} == {UnknownKey}
        assert len(issuer.asked) == 2

    published(issuer, main)


def test_nobody_waits_for_an_issuer_that_has_just_failed() -> None:
    """A fetch that begins soon after another is waited for by nobody."""
    down = ConfigError("https://k answered 500, and 200 is expected")
    issuer = Issuer(jwks(RSA), down)

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        loop = asyncio.get_running_loop()
        await verifier.authenticate(came(bearer(fresh(runtime))))
        await asyncio.sleep(20)
        waited_s = []
        for _ in range(95):
            began_s = loop.time()
            with pytest.raises(UnknownKey):
                await verifier.authenticate(came(bearer(fresh(runtime, SMALL))))
            waited_s.append(loop.time() - began_s)
            await asyncio.sleep(0.1)
        assert len(issuer.asked) == 3
        assert sum(waited_s) == pytest.approx(0.5)

    published(issuer, main)


def test_without_an_answer_the_last_keys_stay_and_are_asked_for_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pause grows to a minute; before the first answer tokens get 503 and nothing else does."""
    down = ConfigError("https://k answered 500, and 200 is expected")
    issuer = Issuer(down, down, jwks(RSA), *[down] * 20, jwks(OTHER_RSA))

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        with pytest.raises(Shed, match="not here yet"):
            await verifier.authenticate(came(bearer(fresh(runtime))))
        assert await verifier.authenticate(came(bearer("opaque"))) is None
        await asyncio.sleep(30)
        assert await verifier.authenticate(came(bearer(fresh(runtime)))) is not None
        await asyncio.sleep(1000)
        assert await verifier.authenticate(came(bearer(fresh(runtime)))) is not None
        await asyncio.sleep(1500)
        assert await verifier.authenticate(came(bearer(fresh(runtime, OTHER_RSA)))) is not None

    with caplog.at_level(logging.ERROR):
        published(issuer, main)
    told = [record.message for record in caplog.records]
    assert "none came yet" in told[0]
    assert "the last ones stay" in told[-1]
    pauses = [b[0] - a[0] for a, b in zip(issuer.asked, issuer.asked[1:], strict=False)]
    assert max(pauses[3:15]) <= 62


def test_an_issuer_is_asked_where_its_keys_are() -> None:
    """By OpenID Connect Discovery; what names another issuer, or a bare URL, is not followed."""
    where = json.dumps({"issuer": ISSUER, "jwks_uri": "https://k/keys", "more": 1}).encode()
    issuer = Issuer(where, jwks(RSA))

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        assert await verifier.authenticate(came(bearer(fresh(runtime)))) is not None
        assert [url for _, url in issuer.asked] == [
            f"{ISSUER}/.well-known/openid-configuration",
            "https://k/keys",
        ]

    published(issuer, main, url="")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"issuer": "https://other", "jwks_uri": "https://k"}, "another issuer"),
        ({"issuer": ISSUER, "jwks_uri": "http://k"}, "no https:// URL"),
        ({"issuer": ISSUER}, "names no jwks_uri"),
        ([], "names no jwks_uri"),
    ],
)
def test_a_discovery_that_leads_elsewhere_is_not_followed(
    said: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and tokens get 503."""
    issuer = Issuer(json.dumps(said).encode())

    async def main(runtime: Runtime, verifier: TokenVerifier) -> None:
        with pytest.raises(Shed):
            await verifier.authenticate(came(bearer(fresh(runtime))))

    published(issuer, main, url="")
    assert why in caplog.text
