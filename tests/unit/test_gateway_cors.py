"""Pages of other origins: who may read what, and what a browser is told before it sends."""

from __future__ import annotations

from typing import Any

import pytest

from gateway_fakes import Fleet
from synchromesh.gateway import Cors, Forward, Gateway, Route, check
from synchromesh.gateway.cors import CompiledCors, read_cors

SHOP = "https://shop.example"


def compiled(**more: Any) -> CompiledCors:
    mistakes: list[str] = []
    found = read_cors(Cors(**{"origins": {SHOP, "http://localhost:3000"}, **more}), mistakes.append)
    assert mistakes == []
    assert found is not None
    return found


def test_an_answer_is_for_the_origins_that_were_named() -> None:
    """Each is told itself, and others nothing; all of it varies with who asks."""
    cors = compiled(exposed={"etag", "x-part"})
    assert cors.fields([SHOP]) == (
        ("access-control-allow-origin", SHOP),
        ("access-control-expose-headers", "etag, x-part"),
        ("vary", "origin"),
    )
    assert cors.lines([(b"host", b"x"), (b"origin", SHOP.encode())]) == (
        b"access-control-allow-origin: https://shop.example\r\n"
        b"access-control-expose-headers: etag, x-part\r\nvary: origin\r\n"
    )
    for other in (
        [], ["null"], ["*"], [f"{SHOP}.evil.example"], [f"{SHOP}/"], [f"{SHOP}:443"],
        ["http://shop.example"], ["HTTPS://SHOP.EXAMPLE"], [SHOP, SHOP], [f"{SHOP}, {SHOP}"],
    ):  # fmt: skip
        assert cors.fields(other) == (("vary", "origin"),)
        pairs = [(b"origin", value.encode()) for value in other]
        assert cors.lines(pairs) == b"vary: origin\r\n"


def test_everybody_is_told_the_same() -> None:
    """What is open to all does not vary, and never goes with credentials."""
    cors = compiled(origins={"*"}, exposed=set())
    for origins in ([], [SHOP], ["null"], [SHOP, SHOP]):
        assert cors.fields(origins) == (("access-control-allow-origin", "*"),)
        pairs = [(b"origin", value.encode()) for value in origins]
        assert cors.lines(pairs) == b"access-control-allow-origin: *\r\n"
    assert ("access-control-allow-origin", "*") in cors.preflight("https://a.b", "GET", "")


def test_credentials_go_with_named_origins() -> None:
    """In the answer and in what is told before."""
    cors = compiled(credentials=True)
    assert ("access-control-allow-credentials", "true") in cors.fields([SHOP])
    assert ("access-control-allow-credentials", "true") in cors.preflight(SHOP, "GET", "")
    assert cors.fields(["https://evil.example"]) == (("vary", "origin"),)


def test_a_browser_is_told_what_a_page_may_send() -> None:
    """Method, headers, and for how long that holds; what any page may set need not be named."""
    cors = compiled(headers={"x-part", "authorization"}, max_age="1h")
    said = cors.preflight(SHOP, "PUT", "X-Part,authorization,  content-type,")
    assert said == (
        ("access-control-allow-origin", SHOP),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "authorization, x-part"),
        ("access-control-max-age", "3600"),
        ("vary", "origin, access-control-request-method, access-control-request-headers"),
    )


REFUSED = {
    "another origin": (("https://evil.example", "GET", ""), "of this origin"),
    "no origin": (("null", "GET", ""), "of this origin"),
    "a header": ((SHOP, "GET", "x-admin"), "may not set the header 'x-admin'"),
    "one header of several": ((SHOP, "GET", "authorization, x-admin"), "'x-admin'"),
    "a method that is none": ((SHOP, "GET\r\nx: y", ""), "no method"),
    "a long header": ((SHOP, "GET", "x" * 1000), "x" * 60 + "'"),
}


@pytest.mark.parametrize(("asked", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_page_may_not_send_is_said(asked: tuple[str, str, str], words: str) -> None:
    """In words, and without a field that a browser would take for a yes."""
    said = compiled().preflight(*asked)
    assert isinstance(said, str)
    assert words in said


MISTAKES: dict[str, tuple[Any, str]] = {
    "everybody with credentials": (
        Cors(origins={"*"}, credentials=True), "would show every page what a user may see"
    ),
    "everybody and one": (Cors(origins={"*", SHOP}), "write it alone"),
    "a path": (Cors(origins={f"{SHOP}/"}), "is no origin"),
    "no scheme": (Cors(origins={"shop.example"}), "is no origin"),
    "in capitals": (Cors(origins={"https://Shop.example"}), "is no origin"),
    "null": (Cors(origins={"null"}), "is no origin"),
    "a pattern": (Cors(origins={"https://*.example"}), "is no origin"),
    "two lines": (Cors(origins={f"{SHOP}\r\nx: y"}), "is no origin"),
    "a text": (Cors(origins=SHOP), "origins is a text"),  # type: ignore[arg-type]
    "a header in capitals": (Cors(origins={SHOP}, headers={"X-Part"}), "is no header"),
    "all headers": (Cors(origins={SHOP}, exposed={"*"}), "name each"),
    "a header of two lines": (Cors(origins={SHOP}, exposed={"a\r\nb"}), "is no header"),
    "a long time": (Cors(origins={SHOP}, max_age="2d"), "a day at most"),
    "no time": (Cors(origins={SHOP}, max_age="soon"), "max_age"),
    "no Cors": ("*", "write one such as"),
}  # fmt: skip


@pytest.mark.parametrize(("cors", "words"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.parametrize("of_route", [True, False])
def test_a_mistake_is_named_before_anything_listens(cors: Any, words: str, of_route: bool) -> None:
    """With its route, or as the gateway's; once."""
    route = Route("GET /fleet/{id}", Fleet.machine, public=True, cors=cors if of_route else None)
    mistakes = check(Gateway(routes=[route], cors=None if of_route else cors))
    assert len(mistakes) == 1
    assert words in mistakes[0]
    assert mistakes[0].startswith("GET /fleet/{id}: " if of_route else "the gateway: ")


def test_no_origins_are_no_cors() -> None:
    """So a route opts out of what the gateway says of all."""
    found = read_cors(Cors(origins=frozenset()), lambda mistake: pytest.fail(mistake))
    assert found is None
    closed = Forward("GET /x", to="store", public=True, cors=Cors(origins=frozenset()))
    assert check(Gateway(routes=[closed], cors=Cors(origins={SHOP}))) == ()
