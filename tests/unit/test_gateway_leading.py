"""Where the answers of an upstream lead, as a client is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.gateway.leading import Leading, UpstreamPaths


def leading(*pairs: tuple[str, str], url: str = "http://up.internal:8000") -> Leading:
    """Return what rewrites, for the route that is named first and all that there are."""
    own, every = UpstreamPaths(), UpstreamPaths()
    own.add(*pairs[0])
    for pair in pairs:
        every.add(*pair)
    return Leading((own, every), url)


STRIPPED = ("/app/{path...}", "/{path...}")
KEPT = ("/{path...}", "/{path...}")


@pytest.mark.parametrize(
    ("told", "outside"),
    [
        ("http://up.internal:8000/login?next=/a#b", "/app/login?next=/a#b"),
        ("HTTP://UP.Internal.:8000/", "/app/"),
        ("http://up.internal:8000", "/app/"),
        ("http://up.internal:8000?a=b", "/app/?a=b"),
        ("https://up.internal:8000/a", "/app/a"),
        ("//up.internal:8000/a", "/app/a"),
        ("//up.internal/a", "/app/a"),
        ("http://me:secret@up.internal:8000/a", "/app/a"),
        ("/login", "/app/login"),
        ("/a%2Fb/", "/app/a%2Fb/"),
        # What is relative to the path that was asked is so outside, too.
        ("login", "login"),
        ("../a?b", "../a?b"),
        ("?page=2", "?page=2"),
        ("", ""),
        # What leads elsewhere is the upstream's to say.
        ("http://up.internal/a", "http://up.internal/a"),
        ("http://up.internal:8001/a", "http://up.internal:8001/a"),
        ("https://shop.example/login", "https://shop.example/login"),
        ("http://up.internal:8000@evil.example/", "http://up.internal:8000@evil.example/"),
        ("//evil.example/a", "//evil.example/a"),
        ("/\\evil.example", "/\\evil.example"),
        ("mailto:a@b.example", "mailto:a@b.example"),
        ("http://[::1", "http://[::1"),
        ("http://up.internal:99999/a", "http://up.internal:99999/a"),
    ],
)
def test_a_reference_to_the_upstream_is_a_path_of_the_gateway(told: str, outside: str) -> None:
    """Its address leaks nowhere, and a prefix that was stripped is there again."""
    assert leading(STRIPPED).of("location", told) == outside
    assert leading(STRIPPED).raw(b"content-location", told.encode()) == outside.encode()


@pytest.mark.parametrize(
    ("told", "outside"),
    [
        ("http://up.internal:8000//evil.example/a", "/.//evil.example/a"),
        ("http://up.internal:8000/\\evil.example", "/\\evil.example"),
        ("http://up.internal:8000/a", "/a"),
        ("/a//b", "/a//b"),
    ],
)
def test_no_path_becomes_another_host(told: str, outside: str) -> None:
    """Without its host, a path of two slashes would be one: a client would be led away."""
    found = leading(KEPT).of("location", told)
    assert found == outside or found == "/." + outside


@pytest.mark.parametrize("odd", ["\t", "\\", "\t\t", "\x01", "\x7f", "/\\", "/", "/\t", "\t/\\"])
@pytest.mark.parametrize("host", ["/evil.example/a", "evil.example", "\\evil.example"])
@pytest.mark.parametrize(
    "before", ["/base/", "http://up.internal:8000/base/", "//up.internal/base/"]
)
def test_what_clients_drop_makes_no_host(odd: str, host: str, before: str) -> None:
    """Browsers drop a tab and turn a backslash around: `/<tab>/host` is `//host` to them."""
    told = before + odd + host
    for ways, url in (
        (KEPT, "http://up.internal:8000/base"),
        (STRIPPED, "http://up.internal:8000"),
        (("/{path...}", "/base/{path...}"), "http://up.internal:8000"),
    ):
        found = leading(ways, url=url).of("location", told)
        seen = "".join(c for c in found if c > " " and c != "\x7f").replace("\\", "/")
        assert not seen.startswith("//")
        assert leading(ways, url=url).raw(b"location", told.encode()) == found.encode()


def test_the_route_that_was_asked_is_looked_at_before_others() -> None:
    """What it created is often found by another route; one path may be told by two of them."""
    first, second = ("/v1/{p...}", "/{p...}"), ("/v2/{p...}", "/{p...}")
    assert leading(first, second).of("location", "/a") == "/v1/a"
    assert leading(second, first).of("location", "/a") == "/v2/a"
    routes = (("/firmware", "/images"), ("/firmware/{name}", "/images/{name}"))
    made = leading(*routes).of("location", "http://up.internal:8000/images/a%20b?v=1")
    assert made == "/firmware/a%20b?v=1"


def test_what_no_route_leads_to_is_told_without_its_host() -> None:
    """Nobody can follow it; the address stays inside all the same."""
    routes = leading(("/firmware/{name}", "/images/{name}"))
    assert routes.of("location", "http://up.internal:8000/admin") == "/admin"
    assert routes.of("location", "/admin") == "/admin"


def test_the_prefix_of_an_instances_url_is_no_part_of_a_path() -> None:
    """An upstream that is at http://host/prefix tells its paths with it."""
    below = leading(STRIPPED, url="https://up.internal/base/")
    assert below.of("location", "https://up.internal/base/a") == "/app/a"
    assert below.of("location", "https://up.internal:443/base") == "/app/"
    assert below.of("location", "/base/a") == "/app/a"
    assert below.of("location", "/baseball") == "/baseball"


@pytest.mark.parametrize(
    ("told", "outside"),
    [
        ("5; url=http://up.internal:8000/a", "5; url=/app/a"),
        ('0;URL = "/a"', '0;URL = "/app/a"'),
        ("5;/a", "5;/app/a"),
        ("5", "5"),
        ("5; url=https://other.example/", "5; url=https://other.example/"),
    ],
)
def test_a_refresh_leads_to_the_gateway(told: str, outside: str) -> None:
    """Browsers follow it as they follow Location."""
    assert leading(STRIPPED).of("refresh", told) == outside


def test_links_lead_to_the_gateway() -> None:
    """Pages of a list name each other by Link."""
    told = '<http://up.internal:8000/a?page=2>; rel="next", <https://o.example>; rel=x, </b>;a="<"'
    linked = '</app/a?page=2>; rel="next", <https://o.example>; rel=x, </app/b>;a="<"'
    assert leading(STRIPPED).of("link", told) == linked


@pytest.mark.parametrize(
    ("told", "outside"),
    [
        ("id=1; Path=/; HttpOnly", "id=1; Path=/app; HttpOnly"),
        ("id=1; path=/a;Secure", "id=1; Path=/app/a;Secure"),
        ("id=1; Domain=up.internal; Path=/", "id=1; Path=/app"),
        ("id=1; domain=.UP.internal", "id=1"),
        ("id=1; Domain=shop.example", "id=1; Domain=shop.example"),
        ("id=1", "id=1"),
        ("id=1; Path=a", "id=1; Path=a"),
        ("__Host-id=1; Path=/; Secure", "__Host-id=1; Path=/; Secure"),
        ("id=a=b; Expires=Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_a_cookie_comes_back_to_where_it_was_set(told: str, outside: str | None) -> None:
    """Its path is that of the gateway, and the upstream's own domain is left out."""
    assert leading(STRIPPED).of("set-cookie", told) == (told if outside is None else outside)


def test_a_cookie_of_a_prefix_is_one_of_the_routes_prefix() -> None:
    """With and without the slash at its end; one that is wider stays so."""
    deep = leading(("/app/{path...}", "/v2/{path...}"))
    assert deep.of("set-cookie", "a=1; Path=/v2") == "a=1; Path=/app"
    assert deep.of("set-cookie", "a=1; Path=/v2/") == "a=1; Path=/app"
    assert deep.of("set-cookie", "a=1; Path=/") == "a=1; Path=/"
    assert leading(KEPT).of("set-cookie", "a=1; Path=/") == "a=1; Path=/"


@given(st.text("/\\ab.:@?#%[2f<>;=\"' ", max_size=40))
def test_whatever_an_upstream_says_it_leads_to_no_new_host(told: str) -> None:
    """What named no other host names none afterwards, and nothing raises."""
    for name in ("location", "refresh", "link", "set-cookie"):
        leading(KEPT).of(name, told)
    outside = leading(KEPT).of("location", f"http://up.internal:8000/{told}")
    assert outside.startswith("/")
    assert not outside.startswith(("//", "/\\"))
    assert "up.internal" not in outside
