"""Who asks: certificates, functions of one's own, several credentials at once, and their names."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway_fakes import ROUTES, Orders, Plant, behind, came, came_as, json_of
from synchromesh.certificate import ClientCertificate
from synchromesh.errors import (
    ConfigError,
    Forbidden,
    RateLimited,
    Shed,
    TimedOut,
    Unauthenticated,
)
from synchromesh.gateway import (
    JWT,
    ApiKey,
    ApiKeys,
    Auth,
    AuthFunction,
    Certificates,
    Folders,
    Forward,
    Gateway,
    KeyRing,
    Principal,
    Route,
    check,
    make_key,
    openapi_of,
    parse_keys,
)
from synchromesh.gateway.caching import credential_fields
from synchromesh.gateway.certificates import CertificateVerifier
from synchromesh.gateway.identifying import Identification
from synchromesh.http import HttpRequest
from synchromesh.runtime import Runtime
from synchromesh.testing import run
from synchromesh.watched import WatchedFile

ACME = Principal("acme", frozenset({"orders:write"}))
FOREVER = 1e12
HERE = Folders(Path(), Path())
MAPPED = Certificates(
    names="uri",
    principals={
        "spiffe://partners/acme": ACME,
        "spiffe://partners/acme/2": ACME,
        "spiffe://partners/zeta": Principal("zeta"),
    },
)
READ = frozenset({"stock:read"})
ODD_VALUE: Any = 1.5
ODD_CLAIMS: Any = {"f": 1}
BY_NAME = Certificates(names="cn", scopes=READ)
TEXT, KEY = make_key("acme", ["orders:write"], rng=random.Random(1))
OTHER_TEXT, OTHER = make_key("visitor", [], rng=random.Random(2))


def shown(kind: str = "uri", *names: str, expires_s: float = FOREVER) -> ClientCertificate:
    return ClientCertificate({kind: names}, expires_s)


def simulated(main: Callable[[Runtime], Coroutine[Any, Any, None]]) -> None:
    run(main)


# -- certificates ----------------------------------------------------------------------------------

AS_ACME = Principal("acme", frozenset({"orders:write"}), "certificate")
CERTIFICATES: Mapping[str, tuple[Certificates, ClientCertificate, object]] = {
    "a name that is known": (MAPPED, shown("uri", "spiffe://partners/acme"), AS_ACME),
    "beside others": (MAPPED, shown("uri", "urn:x", "spiffe://partners/acme"), AS_ACME),
    "two names of one": (
        MAPPED,
        shown("uri", "spiffe://partners/acme", "spiffe://partners/acme/2"),
        AS_ACME,
    ),
    "two names of two": (
        MAPPED,
        shown("uri", "spiffe://partners/acme", "spiffe://partners/zeta"),
        "names several",
    ),
    "a name that is not known": (MAPPED, shown("uri", "spiffe://partners/other"), None),
    "to the letter": (MAPPED, shown("uri", "SPIFFE://partners/acme"), None),
    "no part of a name": (MAPPED, shown("uri", "spiffe://partners/acme/3"), None),
    "the right name in another place": (MAPPED, shown("dns", "spiffe://partners/acme"), None),
    "no name": (MAPPED, shown("uri"), None),
    "expired": (MAPPED, shown("uri", "spiffe://partners/acme", expires_s=1.0), "has expired"),
    "expired, of nobody": (MAPPED, shown("uri", "urn:x", expires_s=1.0), None),
    "a common name": (
        BY_NAME,
        shown("cn", "drive 7"),
        Principal("cert:drive 7", frozenset({"stock:read"}), "certificate"),
    ),
    "two common names": (BY_NAME, shown("cn", "a", "b"), "names several"),
    "of two lines": (BY_NAME, shown("cn", "a\nb"), None),
    "with a NUL": (BY_NAME, shown("cn", "shop\0.evil"), None),
    "empty": (BY_NAME, shown("cn", ""), None),
    "too long": (BY_NAME, shown("cn", "x" * 124), None),
    "an address": (
        Certificates(names="email", prefix="mail:"),
        shown("email", "ada@x"),
        Principal("mail:ada@x", kind="certificate"),
    ),
    "a host": (
        Certificates(names="dns", principals={"a.example": Principal("a")}),
        shown("dns", "b.example", "a.example"),
        Principal("a", kind="certificate"),
    ),
    "no wildcard": (
        Certificates(names="dns", principals={"a.example": Principal("a")}),
        shown("dns", "*.example"),
        None,
    ),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_becomes_a_principal_by_a_rule(name: str) -> None:
    """Where the rule looks, to the letter, while it is valid; what is unclear is refused."""
    rule, certificate, expected = CERTIFICATES[name]

    async def main(runtime: Runtime) -> None:
        verifier = rule.open(HERE, runtime)
        request = came((), certificate)
        if isinstance(expected, str):
            with pytest.raises(Unauthenticated, match=expected):
                await verifier.authenticate(request)
            return
        assert await verifier.authenticate(request) == expected
        if expected is not None:
            known = Identification([verifier]).known()
            assert known(came_as((), certificate)) == expected
        assert await verifier.authenticate(came()) is None

    simulated(main)


# -- several at once -------------------------------------------------------------------------------


class ByCookie:
    """Knows one session, and asks nobody else; it tells nothing at once."""

    kind = "session"

    def open(self, folders: object, runtime: object) -> ByCookie:
        return self

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        is_ours = request.headers.get("cookie") == "sid=1"
        return Principal("acme", kind="session") if is_ours else None

    def refresh(self) -> None: ...

    async def close(self) -> None: ...


KEY_OF_ACME, KEY_OF_OTHER = ("x-api-key", TEXT), ("x-api-key", OTHER_TEXT)
WRONG_KEY, STRANGE = ("x-api-key", TEXT[:-1] + "!"), ("authorization", "Basic abc")
COOKIE = ("cookie", "sid=1")
OF_ACME = shown("uri", "spiffe://partners/acme")
OF_ZETA = shown("uri", "spiffe://partners/zeta")
OF_NOBODY = shown("uri", "urn:x")
GONE = shown("uri", "spiffe://partners/acme", expires_s=1.0)
SEVERAL: Mapping[str, tuple[tuple[tuple[str, str], ...], ClientCertificate | None, str]] = {
    "nothing": ((), None, "none came that is known"),
    "a key": ((KEY_OF_ACME,), None, "key acme"),
    "a certificate": ((), OF_ACME, "certificate acme"),
    "a certificate of nobody": ((), OF_NOBODY, "none came that is known"),
    "a key, and a certificate of nobody": ((KEY_OF_ACME,), OF_NOBODY, "key acme"),
    "both of one": ((KEY_OF_ACME,), OF_ACME, "key acme"),
    "both, of two": ((KEY_OF_OTHER,), OF_ACME, "different principals"),
    "the other way round": ((KEY_OF_ACME,), OF_ZETA, "different principals"),
    "a wrong key, and a right certificate": ((WRONG_KEY,), OF_ACME, "not valid"),
    "a right key, and one that has expired": ((KEY_OF_ACME,), GONE, "has expired"),
    "one that has expired": ((), GONE, "has expired"),
    "a credential of an unknown kind": ((STRANGE,), None, "none came that is known"),
    "that, and a certificate": ((STRANGE,), OF_ACME, "a credential that is not known here"),
    "a key twice": ((KEY_OF_ACME, KEY_OF_ACME), OF_ACME, "several credentials"),
    "a session": ((COOKIE,), None, "session acme"),
    "a session, and a certificate of the same": ((COOKIE,), OF_ACME, "session acme"),
    "a session, and a certificate of another": ((COOKIE,), OF_ZETA, "different principals"),
}


def told(principal: Principal | None) -> str:
    return "" if principal is None else f"{principal.kind} {principal.name}"


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_several_credentials_one_counts_or_none(name: str, order: tuple[int, ...]) -> None:
    """The request's own before the connection's, in any order; two of two are refused."""
    fields, certificate, expected = SEVERAL[name]

    async def main(runtime: Runtime) -> None:
        ring = KeyRing({each.id: each for each in (KEY, OTHER)}, runtime)
        ways: list[Any] = [ring, MAPPED.open(HERE, runtime), ByCookie()]
        who = Identification([ways[each] for each in order])
        raw = [(name.encode(), value.encode()) for name, value in fields]
        at_once = told(who.known()(came_as(raw, certificate)))
        if expected.partition(" ")[0] not in ("key", "certificate", "session"):
            with pytest.raises(Unauthenticated, match=expected):
                await who.of(came(fields, certificate))
            assert at_once == ""
        else:
            assert told(await who.of(came(fields, certificate))) == expected
            assert at_once in ("", expected)

    simulated(main)


def test_a_certificate_is_nobody_elses_at_once() -> None:
    """Where the first rule that knows it refuses it, the next is not asked by either way."""
    partners = Certificates(
        names="dns", principals={"a.acme": Principal("acme"), "b.bolt": Principal("bolt")}
    )
    others = Certificates(names="uri", scopes=frozenset({"admin"}))
    both = ClientCertificate({"dns": ("a.acme", "b.bolt"), "uri": ("spiffe://x",)}, FOREVER)

    async def main(runtime: Runtime) -> None:
        who = Identification([partners.open(HERE, runtime), others.open(HERE, runtime)])
        with pytest.raises(Unauthenticated, match="names several principals"):
            await who.of(came((), both))
        assert who.known()(came_as((), both)) is None

    simulated(main)


SET: Any = {"a:b"}
NUMBERS: Any = frozenset({"a:b", 3})
SEVEN: Any = 7
BIG = frozenset(f"scope:number-{number}" for number in range(300))
MALFORMED: Mapping[str, tuple[Principal, str]] = {
    "a scope that is several": (Principal("x", frozenset({"Sales a:b admin"})), "a blank"),
    "an empty scope": (Principal("x", frozenset({""})), "empty"),
    "a scope in two lines": (Principal("x", frozenset({"a\nb"})), "a blank"),
    "a scope that is a number": (Principal("x", NUMBERS), "got `int` - at `$.scopes"),
    "too many scopes": (Principal("x", BIG), "longer than 4096 bytes"),
    "a claim with a point": (Principal("x", claims=(("f", ODD_VALUE),)), "got `float`"),
    "claims by name": (Principal("x", claims=ODD_CLAIMS), "got `object` - at `$.claims`"),
    "a claim past numbers": (Principal("x", claims=(("f", 2**53),)), "no number below 2**53"),
    "half a letter": (Principal("x", claims=(("f", "\ud800"),)), "cannot be written as UTF-8"),
    "an issuer that is a number": (Principal("x", issuer=SEVEN), "`$.issuer`"),
}


class Own(ByCookie):
    """Says of anybody that it is this one."""

    def __init__(self, said: Principal) -> None:
        self.said = said

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        return self.said

    def known(self, exchange: object) -> Principal | None:
        return self.said


@pytest.mark.parametrize("name", MALFORMED)
def test_what_cannot_travel_is_no_principal(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of a function or an authenticator of one's own: 503 and why; of a certificate: a mistake."""
    said, why = MALFORMED[name]

    async def main(runtime: Runtime) -> None:
        for each in (own(returning(said)).open(HERE, runtime), Own(said)):
            caplog.clear()
            who = Identification([each])
            assert who.known()(came_as([])) is None
            with pytest.raises(Shed):
                await who.of(came())
            assert why in caplog.text

    simulated(main)
    (mistake,) = Certificates(principals={"x": said}).mistakes()
    assert mistake.startswith("Certificates: principals['x']: ")


def test_a_set_that_can_be_changed_is_taken_as_one_that_cannot() -> None:
    """Whoever has no type checker writes it so, and it would be no part of a key of a cache."""
    said, expected = Principal("x", SET), frozenset({"a:b"})

    async def main(runtime: Runtime) -> None:
        of_function = own(returning(said)).open(HERE, runtime)
        of_rule = Certificates(principals={"x": said}).open(HERE, runtime)
        by = came((), shown("uri", "x"))
        for found in (
            await of_function.authenticate(by),
            await of_rule.authenticate(by),
            await Identification([Own(said)]).of(by),
            Identification([Own(said)]).known()(came_as([])),
        ):
            assert found is not None
            assert isinstance(found.scopes, frozenset)
            assert hash(found) == hash(Principal("x", expected, found.kind))

    simulated(main)


def test_what_is_known_at_once_is_what_would_be_found_out() -> None:
    """Without a function of one's own, keys and certificates take the fast way."""

    async def main(runtime: Runtime) -> None:
        ring = KeyRing({each.id: each for each in (KEY, OTHER)}, runtime)
        who = Identification([ring, MAPPED.open(HERE, runtime)])
        by_certificate = who.known({"certificate"})
        assert told(who.known()(came_as([], OF_ACME))) == "certificate acme"
        assert told(by_certificate(came_as([], OF_ACME))) == "certificate acme"
        pair = (b"x-api-key", TEXT.encode())
        assert told(who.known()(came_as([pair]))) == "key acme"
        assert by_certificate(came_as([pair])) is None
        assert Identification([ring]).known({"certificate"})(came_as([pair])) is None
        assert told(Identification([ring]).known()(came_as([pair]))) == "key acme"

    simulated(main)


@pytest.mark.parametrize(
    ("fields", "certificate", "kinds", "expected"),
    [
        ((KEY_OF_ACME,), None, {"key"}, "key acme"),
        ((KEY_OF_ACME,), None, {"certificate"}, "another kind: certificate"),
        ((KEY_OF_ACME,), None, {"certificate", "session"}, "another kind: certificate or session"),
        ((), OF_ACME, {"key"}, "another kind: key"),
        ((), OF_ACME, {"certificate"}, "certificate acme"),
        ((KEY_OF_ACME,), OF_ACME, {"certificate"}, "certificate acme"),
        ((KEY_OF_OTHER,), OF_ACME, {"certificate"}, "different principals"),
        ((), None, {"certificate"}, "none came"),
    ],
)
def test_a_route_may_ask_for_a_kind(
    fields: tuple[tuple[str, str], ...],
    certificate: ClientCertificate | None,
    kinds: set[str],
    expected: str,
) -> None:
    """Of two that agree the one of that kind counts, with its scopes."""

    async def main(runtime: Runtime) -> None:
        ring = KeyRing({each.id: each for each in (KEY, OTHER)}, runtime)
        who = Identification([ring, MAPPED.open(HERE, runtime)])
        if expected.startswith(("key ", "certificate ")):
            assert told(await who.of(came(fields, certificate), kinds)) == expected
            return
        with pytest.raises(Unauthenticated, match=expected):
            await who.of(came(fields, certificate), kinds)

    simulated(main)


class Rung(Auth):
    """Opens as a ring of one key."""

    kind = "key"

    def open(self, folders: object, runtime: object) -> KeyRing:
        return KeyRing({KEY.id: KEY}, _WALL)  # type: ignore[arg-type]


class _Wall:
    def wall_us(self) -> int:
        return 0


_WALL = _Wall()


class Shown(Auth):
    """Opens as the rule of certificates above."""

    kind = "certificate"

    def open(self, folders: object, runtime: object) -> CertificateVerifier:
        return CertificateVerifier(MAPPED, _WALL)  # type: ignore[arg-type]


@pytest.mark.usefixtures("http_way")
def test_the_gateway_answers_by_certificate() -> None:
    """On routes of every kind: the principal arrives at the service with its scopes."""
    routes = [
        replace(route, by={"certificate"}) if "notes" in route.route else route for route in ROUTES
    ]

    async def main(plant: Plant) -> None:
        for route, body, by, certificate, status in (
            ("GET /orders/o", None, "", OF_ACME, 403),
            ("GET /machines/m", None, "", OF_ACME, 200),
            ("GET /machines/m", None, f"Bearer {TEXT}", OF_ACME, 200),
            ("GET /machines/m", None, f"Bearer {TEXT}", OF_ZETA, 401),
            ("GET /machines/m", None, "", OF_NOBODY, 401),
            ("GET /machines/m", None, "", None, 401),
            ("PUT /orders/o/notes", {"text": "x"}, f"Bearer {TEXT}", None, 401),
            ("PUT /orders/o/notes", {"text": "x"}, f"Bearer {TEXT}", OF_ACME, 200),
            ("PUT /orders/o/notes", {"text": "x"}, "", OF_ACME, 200),
        ):
            answer = await plant.ask(route, body, by=by, certificate=certificate)
            assert answer.status == status, (route, by, certificate, json_of(answer))
        kinds = [each.context.principal.kind for each in plant.orders.asked]
        assert set(kinds[-2:]) == {"certificate"}
        scopes = [each.context.principal.scopes for each in plant.orders.asked]
        assert scopes[-1] == {"orders:write"}

    behind(main, gateway=Gateway(auth=[Rung(), Shown()], routes=routes))


# -- a function of one's own -----------------------------------------------------------------------

CANARY = "sid=very-secret"


def own(function: Callable[[HttpRequest], Awaitable[Any]], **how: Any) -> AuthFunction:
    return AuthFunction(function, kind="session", **how)


async def by_cookie(request: HttpRequest) -> Principal | None:
    cookie = request.headers.get("cookie")
    return None if cookie is None else Principal(cookie, frozenset({"a"}), "made up")


def test_a_function_says_who_asks() -> None:
    """It is asked each time, sees no body, and its kind is the one that was declared."""
    seen: list[HttpRequest] = []

    async def look(request: HttpRequest) -> Principal | None:
        seen.append(request)
        return await by_cookie(request)

    async def main(runtime: Runtime) -> None:
        authenticator = own(look).open(HERE, runtime)
        for _ in range(3):
            request = replace_body(came([("cookie", "ada")]), b"body")
            found = await authenticator.authenticate(request)
            assert found == Principal("ada", frozenset({"a"}), "session")
        assert await authenticator.authenticate(came()) is None

    simulated(main)
    assert [each.body for each in seen] == [b""] * 4


def replace_body(request: HttpRequest, body: bytes) -> HttpRequest:
    import msgspec

    return msgspec.structs.replace(request, body=body)


async def hangs(request: HttpRequest) -> Principal | None:
    await asyncio.sleep(3600)
    raise AssertionError


def raising(error: BaseException) -> Callable[[HttpRequest], Awaitable[Principal | None]]:
    async def fails(request: HttpRequest) -> Principal | None:
        raise error

    return fails


def returning(value: Any) -> Callable[[HttpRequest], Awaitable[Any]]:
    async def returns(request: HttpRequest) -> Any:
        return value

    return returns


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (hangs, Shed),
        (raising(KeyError(CANARY)), Shed),
        (raising(OSError(f"cannot look up {CANARY}")), Shed),
        (raising(TimedOut("the identity provider")), Shed),
        (raising(Unauthenticated("signed out")), Unauthenticated),
        (raising(Forbidden("locked")), Forbidden),
        (raising(RateLimited("slow down")), RateLimited),
        (returning(CANARY), Shed),
        (returning(Principal("")), Shed),
        (returning(Principal("a\n")), Shed),
        (returning(Principal("a", frozenset({"x" * 5000}))), Shed),
    ],
)
def test_what_fails_says_nothing_of_the_credential(
    function: Callable[[HttpRequest], Awaitable[Any]],
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is 503, told in the log without what it was about; only a clear no is a no."""
    caplog.set_level(logging.DEBUG)

    async def main(runtime: Runtime) -> None:
        loop = asyncio.get_running_loop()
        authenticator = own(function, within="2s").open(HERE, runtime)
        began_s = loop.time()
        with pytest.raises(error) as caught:
            await authenticator.authenticate(came([("cookie", CANARY)]))
        assert loop.time() - began_s <= 2.0
        assert CANARY not in str(caught.value)
        assert repr(authenticator) == "<OwnAuthenticator session, 0 under way>"

    simulated(main)
    assert CANARY not in caplog.text
    assert bool(caplog.records) == (error is Shed)


def test_only_so_many_wait_for_a_function() -> None:
    """One more is told to come again; who gives up leaves a place."""

    async def main(runtime: Runtime) -> None:
        loop = asyncio.get_running_loop()
        authenticator = own(hangs, within="30s", at_once=3).open(HERE, runtime)
        waiting = [loop.create_task(authenticator.authenticate(came())) for _ in range(3)]
        await asyncio.sleep(1)
        with pytest.raises(Shed, match="too many wait"):
            await authenticator.authenticate(came())
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert repr(authenticator) == "<OwnAuthenticator session, 0 under way>"

    simulated(main)


def test_a_principal_is_kept_only_where_that_is_said() -> None:
    """By the fields that were named, until its time is over; a no and a failure never are."""
    asked: list[str] = []

    async def count(request: HttpRequest) -> Principal | None:
        cookie = request.headers.get("cookie", "")
        asked.append(cookie)
        if cookie == "bad":
            raise Unauthenticated("no")
        return await by_cookie(request) if cookie else None

    async def main(runtime: Runtime) -> None:
        authenticator = own(count, kept="10s", kept_by={"cookie"}, kept_max=2).open(HERE, runtime)
        for name in ("ada", "ada", "bob", "ada"):
            found = await authenticator.authenticate(
                came([("cookie", name), ("x", str(len(asked)))])
            )
            assert found is not None
            assert found.name == name
        assert asked == ["ada", "bob"]
        # The same field twice is another question.
        await authenticator.authenticate(came([("cookie", "ada"), ("cookie", "bob")]))
        assert asked == ["ada", "bob", "ada"]
        await asyncio.sleep(10)
        await authenticator.authenticate(came([("cookie", "bob")]))
        assert asked == ["ada", "bob", "ada", "bob"]
        for _ in range(2):
            assert await authenticator.authenticate(came()) is None
            with pytest.raises(Unauthenticated):
                await authenticator.authenticate(came([("cookie", "bad")]))
        assert len(asked) == 8
        await authenticator.close()

    simulated(main)


# -- mistakes --------------------------------------------------------------------------------------

JWT_OF_A = JWT(issuer="https://a", audience="api")
ODD: Any = "acme"
WRONG: Mapping[str, tuple[list[Any], dict[str, Any], str]] = {
    "an unknown place": ([Certificates(names="serial")], {}, "names is 'serial'; take one of uri"),
    "no prefix": ([Certificates(names="cn", prefix="")], {}, "prefix is empty"),
    "scopes beside principals": ([replace(MAPPED, scopes={"a"})], {}, "scopes go with no princ"),
    "an odd scope": ([Certificates(scopes={"A B"})], {}, "scopes: 'A B' is no scope"),
    "scopes that are a text": ([Certificates(scopes=ODD)], {}, "scopes are a set of texts"),
    "too many scopes": ([Certificates(scopes=BIG)], {}, "scopes: no principal can be made of it"),
    "a name that is a number": (
        [JWT_OF_A, Certificates(principals={"x": Principal(SEVEN)})],
        {},
        "principals['x'] is no Principal",
    ),
    "an odd scope of one": (
        [Certificates(principals={"x": Principal("x", frozenset({"?"}))})],
        {},
        "principals['x']: '?' is no scope",
    ),
    "no principal": (
        [Certificates(principals={"x": ODD})],
        {},
        "principals['x'] is no Principal",
    ),
    "no name": ([Certificates(principals={"x": Principal()})], {}, "principals['x'] is no Princip"),
    "a principal of a token": (
        [JWT_OF_A, Certificates(principals={"x": Principal("jwt:ada")})],
        {},
        "'jwt:ada' has a name as tokens of https://a give it",
    ),
    "prefixes of two": (
        [JWT_OF_A, Certificates(names="cn", prefix="jwt:x")],
        {},
        "can give principals the same names",
    ),
    "two rules of one prefix are one authority": ([BY_NAME, BY_NAME], {}, ""),
    "a function that is not async": (
        [AuthFunction(lambda _: None)],  # type: ignore[arg-type,return-value]
        {},
        "its function is not async",
    ),
    "no time": ([own(by_cookie, within="0s")], {}, "within is 0s"),
    "a long time": ([own(by_cookie, within="1h")], {}, "within is 1h, and up to 30 s"),
    "no duration": ([own(by_cookie, within="soon")], {}, "within:"),
    "kept by nothing": ([own(by_cookie, kept="5s")], {}, "kept needs kept_by"),
    "kept by a name in capitals": (
        [own(by_cookie, kept="5s", kept_by={"Cookie"})],
        {},
        "'Cookie' is no name of a field in lower case",
    ),
    "room for nobody": ([own(by_cookie, at_once=0)], {}, "numbers of 1 or more"),
    "an odd kind": ([AuthFunction(by_cookie, kind="a b")], {}, "kind is 'a b'"),
    "an unknown kind": ([ApiKeys()], {"by": {"token"}}, "by names 'token', and the gateway's auth"),
    "a text": ([ApiKeys()], {"by": "key"}, 'by is a text; write a set of texts, such as {"key"}'),
    "of nobody": ([ApiKeys()], {"by": {"key"}, "public": True}, "is public and says by what"),
    "a kind that is not told": ([ByCookie(), Rung()], {"by": {"session"}}, ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named_before_anything_listens(name: str) -> None:
    """Each with what to write instead."""
    auth, how, expected = WRONG[name]
    found = check(Gateway(auth=auth, routes=[Forward("GET /x", to="x", **how)]))
    if expected:
        assert len(found) == 1
        assert expected in found[0]
    else:
        assert found == ()


@pytest.mark.parametrize("auth", [Certificates(names="x"), own(by_cookie, at_once=0)])
def test_a_wrong_rule_is_not_opened(auth: Auth) -> None:
    """Also by who has not checked the gateway."""

    async def main(runtime: Runtime) -> None:
        with pytest.raises(ConfigError):
            auth.open(HERE, runtime)

    simulated(main)


def test_clients_are_told_how_to_prove_who_they_are() -> None:
    """OpenAPI names each way, and a route that takes some of them names those."""
    routes = [Route("GET /orders/{order_id}", Orders.one, by={"certificate"})]
    auth: list[Auth] = [ApiKeys(), MAPPED, own(by_cookie)]
    document = openapi_of(Gateway(auth=auth, routes=routes))
    schemes = document["components"]["securitySchemes"]
    assert schemes["Certificate"]["type"] == "mutualTLS"
    assert "session" in schemes
    assert document["paths"]["/orders/{order_id}"]["get"]["security"] == [{"Certificate": []}]


def test_private_answers_differ_by_what_a_function_looks_at() -> None:
    """A browser that keeps them does not show one session what another one was answered."""
    assert credential_fields([MAPPED]) == ()
    assert credential_fields([ApiKeys(), own(by_cookie)]) == (
        "authorization", "cookie", "x-api-key",
    )  # fmt: skip
    assert credential_fields([own(by_cookie, kept_by={"x-session"})]) == ("x-session",)


# -- names of keys ---------------------------------------------------------------------------------


def keys_file(*principals: str) -> bytes:
    made = [make_key(name, [], rng=random.Random(name))[1] for name in principals]
    entries = [{"id": k.id, "principal": k.principal, "hash": k.hash} for k in made]
    return json.dumps({"keys": entries}).encode()


def _read_of(folder: Path, data: bytes) -> dict[str, ApiKey]:
    (folder / "other.json").write_bytes(data)
    return parse_keys(data, "other.json")


def test_no_key_poses_as_the_subject_of_a_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start it is named; later on, it is left out, and what is gone is gone all the same."""
    from synchromesh.gateway.api_keys import _read

    path = tmp_path / "api-keys.json"
    path.write_bytes(keys_file("shop"))
    reserved = {"jwt:": "tokens of https://a"}

    async def main(runtime: Runtime) -> None:
        file = WatchedFile(path, "the API keys", _read)
        ring = KeyRing(file.value, runtime, file=file)
        ring.reserve(reserved)
        gone = set(file.value)
        path.write_bytes(keys_file("jwt:ada", "jwt"))
        ring.refresh()
        assert repr(ring) == "<KeyRing 1 keys>"
        assert "is not accepted: the principal 'jwt:ada' has a name" in caplog.text
        assert not gone & set(file.value)
        ring.replace({**file.value, **_read_of(tmp_path, keys_file("shop"))})
        assert repr(ring) == "<KeyRing 2 keys>"
        ring.replace(_read_of(tmp_path, keys_file("jwt:ada")))
        assert repr(ring) == "<KeyRing 0 keys>"
        with pytest.raises(ConfigError, match="'jwt:bob' has a name as tokens of https://a give"):
            ring.add(make_key("jwt:bob", [], rng=random.Random(3))[1])
        ring.add(make_key("jwtx", [], rng=random.Random(3))[1])
        with pytest.raises(ConfigError, match="does not begin with 'jwt:'"):
            KeyRing(_read(path), runtime).reserve(reserved)

    simulated(main)
